// What labels may be chosen by: the bundle's attributes, their frequent values, and a field for the others.

import { byId, make, nameOf, write } from "./page.js";

const OFFERED = 12; // values of one attribute with a box of their own

/** Offer a bundle's attributes; what was chosen stays chosen where the bundle still has it. */
export function offerFilters(attributes, changed) {
  const before = chosen();
  byId("filters").hidden = !attributes.length;
  byId("attributes").replaceChildren(...attributes.map((one) => offered(one, before.get(one.name) ?? [])));
  byId("attributes").oninput = () => {
    count();
    changed();
  };
  count();
}

/** The filter as a request has it; undefined when nothing is chosen. */
export function chosenFilter() {
  const filter = chosen();
  return filter.size ? Object.fromEntries(filter) : undefined; // fromEntries defines even __proto__ as an own property
}

/** Chosen values by attribute; a Map, because an attribute may be named __proto__. */
function chosen() {
  const filter = new Map();
  for (const group of byId("attributes").children) {
    const values = [...group.querySelectorAll("input:checked")].map((box) => JSON.parse(box.value));
    for (const field of group.querySelectorAll("input[type=text]")) {
      const typed = field.value.split(",").map((one) => one.trim()).filter(Boolean);
      values.push(...typed.map((one) => read(one, field.dataset.kind)));
    }
    if (values.length) filter.set(group.dataset.name, values);
  }
  return filter;
}

function offered(attribute, before) {
  const exact = attribute.values.filter((one) => typeof one !== "number" || Math.abs(one) <= Number.MAX_SAFE_INTEGER);
  const boxes = exact.slice(0, OFFERED).map((value) => {
    const box = make("input");
    box.type = "checkbox";
    box.value = JSON.stringify(value);
    box.checked = before.includes(value);
    return make("label", "", box, String(value));
  });
  const group = make("fieldset", "", make("legend", "", nameOf(attribute.name)), ...boxes);
  group.dataset.name = attribute.name;
  if (attribute.more || attribute.values.length > boxes.length) group.append(others(attribute, exact.slice(0, OFFERED), before));
  return group;
}

function others(attribute, offeredValues, before) {
  const field = make("input");
  field.type = "text";
  field.placeholder = "others, by commas";
  field.setAttribute("aria-label", `Other values of ${nameOf(attribute.name)}, by commas`);
  field.dataset.kind = typeof (attribute.values[0] ?? "");
  field.value = before.filter((value) => !offeredValues.includes(value)).join(", ");
  return field;
}

function read(text, kind) {
  return kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function count() {
  const attributes = chosen().size;
  write(byId("filters-count"), attributes ? `(${attributes})` : "");
}
