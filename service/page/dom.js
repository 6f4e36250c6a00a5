// Elements without markup strings: every text is a text node, so nothing sent can become markup.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const percent = (share) => {
  const value = share * 100;
  if (value === 0 || value === 100) return `${value}\u00a0%`;
  if (value < 0.1) return "<0.1\u00a0%";
  if (value > 99.9) return ">99.9\u00a0%";
  return `${value < 10 || value > 99 ? value.toFixed(1) : Math.round(value)}\u00a0%`;
};

export const spaced = (name) => name.replaceAll("_", " ");

export const words = (name) => {
  const text = spaced(name);
  return text.charAt(0).toUpperCase() + text.slice(1);
};

export const plain = (value) => {
  if (value === null || value === undefined) return "not known";
  if (value === true) return "yes";
  if (value === false) return "no";
  return typeof value === "number" ? String(Math.round(value * 10) / 10) : value;
};

// A field's name, whose unit stands beside the value.
export const fieldWords = (name) => words(name.replace(/_(mm|years)$/, ""));

export const measured = (value, unit) => `${plain(value)}${unit ? ` ${unit}` : ""}`;

// The width is set on the element, not in a style attribute, which the page's policy forbids.
export function track(share, { malignant = false, mini = false } = {}) {
  const fill = el("div", { class: malignant ? "fill malignant" : "fill" });
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return el("div", { class: mini ? "track mini" : "track", "aria-hidden": "true" }, fill);
}

export const chip = (text, kind = "") => el("span", { class: `chip ${kind}` }, text);
