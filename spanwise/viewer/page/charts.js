"use strict";
// Curves as SVG. Every colour stands in the picture itself, so that it can be saved as it is.

const Charts = (() => {
  const FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif";
  const MARGIN = { left: 46, right: 12, top: 8, bottom: 22 };

  // series: [{ name, colour, points: [{x, y}], faint, dash, band: [{x, low, high}], dots }]
  // Returns the svg, and ``nearest`` and ``cross`` to look along it.
  function lines({ width, height, series, label, xLabel, marks = [], low = null, high = null }) {
    const ys = series.flatMap((one) => [
      ...one.points.map((p) => p.y), ...(one.band ?? []).flatMap((p) => [p.low, p.high]),
    ]);
    const xs = series.flatMap((one) => one.points.map((p) => p.x));
    let [bottom, top] = extent(ys);
    if (low !== null) bottom = Math.min(bottom, low);
    if (high !== null) top = Math.max(top, high);
    if (bottom === 0 && top === 0) top = 1;
    else if (top - bottom < 1e-12) [bottom, top] = [bottom - Math.abs(bottom) * 0.1, top + Math.abs(top) * 0.1];
    let [left, right] = extent(xs);
    if (right === left) right = left + 1;
    const inner = {
      width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom,
    };
    const x = (v) => MARGIN.left + ((v - left) / (right - left)) * inner.width;
    const y = (v) => MARGIN.top + (1 - (v - bottom) / (top - bottom)) * inner.height;

    const svg = s("svg", {
      width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label,
      "font-family": FONT, "font-size": 11,
    });
    for (const at of Scales.ticks(bottom, top, Math.max(2, Math.floor(inner.height / 38)))) {
      svg.append(
        s("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(at), y2: y(at), stroke: Scales.ink("faint") }),
        s("text", { x: MARGIN.left - 6, y: y(at) + 4, "text-anchor": "end", fill: Scales.ink("soft") }, Scales.number(at)),
      );
    }
    const counted = xs.every(Number.isInteger);  // there is no step 1.5
    for (const at of Scales.ticks(left, right, Math.max(2, Math.floor(inner.width / 80)))) {
      if (counted && !Number.isInteger(at)) continue;
      if (xLabel && x(at) > width - MARGIN.right - 14 - 6 * xLabel.length) continue;
      svg.append(s("text", {
        x: x(at), y: height - 7, "text-anchor": "middle", fill: Scales.ink("soft"),
      }, Scales.number(at)));
    }
    if (xLabel) {
      svg.append(s("text", {
        x: width - MARGIN.right, y: height - 7, "text-anchor": "end", fill: Scales.ink("soft"),
      }, xLabel));
    }
    for (const mark of marks) {
      svg.append(s("line", {
        x1: x(mark.x), x2: x(mark.x), y1: MARGIN.top, y2: height - MARGIN.bottom,
        stroke: Scales.ink(mark.strong ? "soft" : "edge"), "stroke-dasharray": mark.strong ? null : "2 3",
      }));
    }
    for (const one of series) {
      if (one.band?.length) {
        const upper = one.band.map((p) => `${x(p.x).toFixed(1)},${y(p.high).toFixed(1)}`);
        const lower = one.band.map((p) => `${x(p.x).toFixed(1)},${y(p.low).toFixed(1)}`).reverse();
        svg.append(s("polygon", {
          points: [...upper, ...lower].join(" "), fill: one.colour, opacity: 0.2,
        }));
      }
      if (one.points.length > 1) {
        svg.append(s("polyline", {
          points: one.points.map((p) => `${x(p.x).toFixed(1)},${y(p.y).toFixed(1)}`).join(" "),
          fill: "none", stroke: one.colour, "stroke-width": one.faint ? 1 : 1.8,
          opacity: one.faint ? 0.3 : 1, "stroke-dasharray": one.dash ?? null, "stroke-linejoin": "round",
        }));
      }
      if (!one.faint && (one.dots || one.points.length <= 12)) {
        for (const p of one.points) {
          svg.append(s("circle", { cx: x(p.x), cy: y(p.y), r: one.dots ? 2.2 : 3, fill: one.colour }));
        }
      }
    }
    const cursor = s("line", {
      y1: MARGIN.top, y2: height - MARGIN.bottom, stroke: Scales.ink("soft"), visibility: "hidden",
      class: "cursor",
    });
    svg.append(cursor);

    return {
      svg,
      // The place along x that lies at a pixel, as a value.
      valueAt: (pixel) => left + ((pixel - MARGIN.left) / inner.width) * (right - left),
      // Shows the line at a value of x; null hides it.
      cross(value) {
        cursor.setAttribute("visibility", value === null ? "hidden" : "visible");
        if (value === null) return;
        cursor.setAttribute("x1", x(value));
        cursor.setAttribute("x2", x(value));
      },
    };
  }

  function extent(values) {
    let [low, high] = [Infinity, -Infinity];
    for (const v of values) {
      if (v < low) low = v;
      if (v > high) high = v;
    }
    return low <= high ? [low, high] : [0, 1];
  }

  // Index of the point nearest to x, of points in order of x.
  function nearest(points, x) {
    let [low, high] = [0, points.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle].x < x) low = middle;
      else high = middle;
    }
    return Math.abs(points[high]?.x - x) < Math.abs(points[low]?.x - x) ? high : low;
  }

  // Exponential mean that begins unbiased; weight 0 changes nothing.
  function smoothed(points, weight) {
    let [mean, norm] = [0, 0];
    return points.map((p) => {
      mean = weight * mean + (1 - weight) * p.y;
      norm = weight * norm + (1 - weight);
      return { ...p, y: mean / norm };
    });
  }

  function valueAt(points, x) {
    const index = points.findIndex((p) => p.x >= x);
    if (index <= 0) return index === 0 && points[0].x === x ? points[0].y : null;
    const [from, to] = [points[index - 1], points[index]];
    return from.y + ((to.y - from.y) * (x - from.x)) / (to.x - from.x || 1);
  }

  // Median and middle half of several curves, where all of them are, on straight lines
  // between their points.
  function spread(curves, count = 120) {
    const full = curves.filter((points) => points.length);
    if (!full.length) return [];
    const start = Math.max(...full.map((points) => points[0].x));
    const end = Math.min(...full.map((points) => points[points.length - 1].x));
    if (end < start) return [];
    const own = full[0].map((p) => p.x).filter((x) => x >= start && x <= end);
    const common = full.every((points) => points.every((p, i) => full[0][i]?.x === p.x || p.x > end));
    const xs = common && own.length <= 2 * count
      ? own : Array.from({ length: count }, (_, i) => start + ((end - start) * i) / (count - 1));
    return xs.map((x) => {
      const ys = full.map((points) => valueAt(points, x)).filter((y) => y !== null).sort((a, b) => a - b);
      return { x, y: quantile(ys, 0.5), low: quantile(ys, 0.25), high: quantile(ys, 0.75), count: ys.length };
    }).filter((p) => p.count === full.length);
  }

  function quantile(sorted, share) {
    const place = share * (sorted.length - 1);
    const index = Math.floor(place);
    const next = sorted[Math.min(index + 1, sorted.length - 1)];
    return sorted[index] + (next - sorted[index]) * (place - index);
  }

  // Buttons that save a picture. ``find`` gives the svg when they are pressed.
  function savers(find, name) {
    const save = (address, ending) => {
      const link = h("a", { href: address, download: `${name()}.${ending}` });
      link.click();
    };
    const source = () => {
      const copy = find().cloneNode(true);
      copy.setAttribute("xmlns", SVG);
      const [width, height] = [copy.getAttribute("width"), copy.getAttribute("height")];
      copy.prepend(s("rect", { width, height, fill: Scales.ink("paper") }));
      return { text: new XMLSerializer().serializeToString(copy), width: Number(width), height: Number(height) };
    };
    const asSvg = () => {
      const address = URL.createObjectURL(new Blob([source().text], { type: "image/svg+xml" }));
      save(address, "svg");
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    };
    const asPng = () => {
      const { text, width, height } = source();
      const image = new Image();
      image.onload = () => {
        const scale = Math.min(2, 16000 / Math.max(width, height));
        const canvas = h("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
        const context = canvas.getContext("2d");
        context.scale(scale, scale);
        context.drawImage(image, 0, 0);
        save(canvas.toDataURL("image/png"), "png");
      };
      image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
    };
    return h("span", { class: "savers" },
      h("button", { click: asSvg, title: "Save the picture as SVG", "aria-label": `Save ${name()} as SVG` }, "SVG"),
      h("button", { click: asPng, title: "Save the picture as PNG", "aria-label": `Save ${name()} as PNG` }, "PNG"));
  }

  return { lines, nearest, smoothed, spread, savers, extent, FONT };
})();
