"use strict";
// Colours and numbers. Signed figures use orange to blue, which the common kinds of colour
// blindness tell apart, with the neutral colour at 0; others go from neutral to purple.

const Scales = (() => {
  const STOPS = {
    light: {
      signed: ["#a34a00", "#e8953a", "#fbdcb4", "#f3f2ef", "#c3dcf0", "#5fa5d6", "#0b559f"],
      plain: ["#f3f2ef", "#d5cbe6", "#9d86c4", "#553288"],
    },
    dark: {
      signed: ["#ffa04a", "#c2681a", "#6a3d14", "#2c2e36", "#1c4468", "#2f80c2", "#85c8ff"],
      plain: ["#2c2e36", "#4c3d70", "#8464bd", "#cdb8ff"],
    },
  };
  // Okabe and Ito's colours, the pale ones darkened for lines on white.
  const LINES = {
    light: ["#0072b2", "#d55e00", "#009e73", "#b5518f", "#8a6d00", "#3a9bd1", "#555555", "#7b4fb5"],
    dark: ["#56b4e9", "#ff9a4d", "#2fd0a2", "#e79cc9", "#f0e442", "#9fd6f7", "#c0c0c0", "#bfa2ff"],
  };
  const INKS = {
    light: {
      paper: "#ffffff", ink: "#1d2026", soft: "#5d6370", faint: "#e3e4e8", edge: "#c4c8d0",
      accent: "#0b559f", mark: "#b0146e", alarm: "#b3261e", environment: "#eceef1",
    },
    dark: {
      paper: "#17181c", ink: "#e8e9ec", soft: "#a0a5b0", faint: "#2c2e36", edge: "#4a4e5a",
      accent: "#85c8ff", mark: "#ff7cc0", alarm: "#ff8a80", environment: "#24262c",
    },
  };

  function theme() {
    const chosen = document.documentElement.dataset.theme;
    if (chosen) return chosen;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  const ink = (name) => INKS[theme()][name];
  const line = (index) => LINES[theme()][index % LINES.light.length];

  function parts(hex) {
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  }

  function between(stops, share) {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const index = Math.min(Math.floor(place), stops.length - 2);
    const [from, to] = [parts(stops[index]), parts(stops[index + 1])];
    const mixed = from.map((v, i) => Math.round(v + (to[i] - v) * (place - index)));
    return "#" + mixed.map((v) => v.toString(16).padStart(2, "0")).join("");
  }

  // From -limit to limit, neutral at 0.
  const signed = (value, limit) => between(STOPS[theme()].signed, 0.5 + value / (2 * (limit || 1)));
  // From 0 to limit.
  const plain = (value, limit) => between(STOPS[theme()].plain, value / (limit || 1));

  function luminance(hex) {
    const [r, g, b] = parts(hex).map((v) => {
      const c = v / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  // Dark or light, whichever is easier to read on a background.
  const textOn = (background) => (luminance(background) > 0.24 ? "#14161a" : "#ffffff");

  function ticks(low, high, count) {
    if (!(high > low)) return [low];
    const rough = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((size) => size >= rough);
    const found = [];
    const first = Math.ceil(low / step - 1e-9) * step;
    for (let i = 0; i <= count; i++) {  // far from 0 a step may be too small to move by
      const at = first + i * step;
      if (at <= high + step * 1e-9) found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
    }
    return found;
  }

  function number(value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(1);
    if (size >= 1e4) return (value / 1000).toPrecision(digits).replace(/\.0+$/, "") + "k";
    if (Number.isInteger(value)) return String(value);
    return String(Number(value.toPrecision(digits)));
  }

  function withSign(value, digits = 2) {
    if (value === null || value === undefined) return "–";
    const shown = Math.abs(value).toFixed(digits);
    return Number(shown) === 0 ? shown : (value > 0 ? "+" : "−") + shown;
  }

  // A reward, as short as it goes: "+0.7".
  const payment = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + number(Math.abs(value), 2);

  return { theme, ink, line, signed, plain, textOn, luminance, ticks, number, withSign, payment };
})();
