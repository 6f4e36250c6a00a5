// The metadata form, made from /fields; an input that was not touched is not sent.
import { el, fieldWords, words } from "./dom.js";

let made = 0;

function control(field, id) {
  if (field.kind === "categorical") {
    const options = field.categories.map((category) => el("option", { value: category }, category));
    return el("select", { id, name: field.name }, el("option", { value: "" }, "not known"), options);
  }
  if (field.kind === "boolean") {
    const choices = [["", "unknown"], ["true", "yes"], ["false", "no"]];
    return el("div", { class: "segments", role: "radiogroup", id, "aria-label": words(field.name) },
      choices.map(([value, text]) => el("label", {},
        el("input", { type: "radio", class: "unseen", name: `${id}-choice`, "data-field": field.name, value, checked: value === "" }),
        el("span", {}, text))));
  }
  return el("input", {
    type: "number", id, name: field.name, step: "any", inputmode: "decimal",
    min: field.minimum, max: field.maximum, placeholder: "not known",
  });
}

function bounds(field) {
  const range = field.minimum !== null && field.maximum !== null ? `${field.minimum} to ${field.maximum}` : "";
  const text = [range, field.unit].filter(Boolean).join(" ");
  return field.kind === "numeric" && text ? el("span", { class: "unit" }, ` ${text}`) : null;
}

export function fieldRow(field) {
  const id = `field-${++made}`;
  const name = el(field.kind === "boolean" ? "span" : "label",
    { class: "field-name", for: field.kind === "boolean" ? null : id, title: field.description || null },
    fieldWords(field.name), bounds(field));
  return el("div", { class: "field", "data-row": field.name }, name, control(field, id));
}

export function fieldset(title, fields) {
  return fields.length ? el("fieldset", {}, el("legend", {}, title), fields.map(fieldRow)) : null;
}

export function readRecord(host) {
  const record = {};
  for (const input of host.querySelectorAll("select, input[type=number], input[data-field]:checked")) {
    const name = input.dataset.field ?? input.name;
    if (input.type === "number" && input.validity.badInput) record[name] = "not a number";
    else if (input.value !== "") record[name] = input.type === "number" ? Number(input.value) : input.value;
  }
  return record;
}

export function markField(host, problem) {
  clearMarks(host);
  const row = problem.field && host.querySelector(`[data-row="${CSS.escape(problem.field)}"]`);
  if (!row) return;
  const input = row.querySelector("select, input");
  input.setAttribute("aria-invalid", "true");
  row.append(el("p", { class: "field-error" }, problem.message));
  row.closest("details")?.setAttribute("open", "");
  input.focus();
}

export function clearMarks(host) {
  for (const mark of host.querySelectorAll(".field .field-error")) mark.remove();
  for (const input of host.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
}
