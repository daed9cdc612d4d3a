"use strict";
// Text of a model is text. Every string reaches the page through text nodes or attributes
// of ours, never as markup; characters that do something instead of showing something
// (controls, ANSI escapes, bidi and zero-width tricks) are drawn as their escapes.

const Text = (() => {
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029]/gu;

  function escapeOf(character) {
    const code = character.codePointAt(0);
    const hex = code.toString(16);
    if (code <= 0xff) return "\\x" + hex.padStart(2, "0");
    return code <= 0xffff ? "\\u" + hex.padStart(4, "0") : `\\u{${hex}}`;
  }

  // One line, nothing invisible: for labels and names.
  function visible(text) {
    return String(text).replace(/\r?\n/g, "↵").replace(/\t/g, "⇥").replace(HIDDEN, escapeOf);
  }

  // Fills an element with text; line breaks stay and are marked.
  function put(element, text) {
    let last = 0;
    const add = (shown, kind) => {
      const mark = document.createElement("span");
      mark.className = kind;
      mark.textContent = shown;
      element.append(mark);
    };
    for (const match of text.matchAll(HIDDEN)) {
      if (match.index > last) element.append(text.slice(last, match.index));
      last = match.index + match[0].length;
      if (match[0] === "\n") {
        add("↵", "newline");
        element.append("\n");
      } else if (match[0] === "\t") {
        add("⇥", "newline");
      } else {
        add(escapeOf(match[0]), "escape");
      }
    }
    if (last < text.length) element.append(text.slice(last));
    return element;
  }

  const measure = document.createElement("canvas").getContext("2d");
  const widths = new Map(); // of letters, by font: measuring whole labels is slow

  function widthOf(letter, font) {
    const key = font + letter;
    if (!widths.has(key)) {
      if (widths.size > 5000) widths.clear();
      measure.font = font;
      widths.set(key, measure.measureText(letter).width);
    }
    return widths.get(key);
  }

  // The longest beginning of a label that fits, with an ellipsis if it is cut.
  function fitted(label, width, font) {
    let used = 0;
    let cut = 0; // where the label ends if there must be room for the ellipsis
    const room = width - widthOf("…", font);
    for (const letter of label) {
      used += widthOf(letter, font);
      if (used > width) return cut > 0 ? label.slice(0, cut).trimEnd() + "…" : "";
      if (used <= room) cut += letter.length;
    }
    return label;
  }

  return { visible, put, fitted };
})();

const SVG = "http://www.w3.org/2000/svg";

// An element with attributes, listeners (functions) and children; strings become text.
function h(tag, attributes = {}, ...children) {
  return furnished(document.createElement(tag), attributes, children);
}

function s(tag, attributes = {}, ...children) {
  return furnished(document.createElementNS(SVG, tag), attributes, children);
}

function furnished(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === false) continue;
    else if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function select(label, options, value, change, id) {
  const box = h("select", { "aria-label": label, id, change: () => change(box.value) });
  for (const [key, text] of options) {
    box.append(h("option", { value: key, selected: String(key) === String(value) }, text));
  }
  return h("label", { class: "field" }, h("span", {}, label), box);
}

function slider(label, { min, max, step, value, id, shown = String }, change) {
  const readout = h("output", {}, shown(value));
  const range = h("input", { type: "range", min, max, step, value, id, "aria-label": label });
  range.addEventListener("input", () => {
    readout.textContent = shown(Number(range.value));
    range.setAttribute("aria-valuetext", readout.textContent);
    change(Number(range.value));
  });
  return h("label", { class: "field" }, h("span", {}, label), range, readout);
}
