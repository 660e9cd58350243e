// Filters on the bundle's attributes: checkboxes for frequent values, and a text field for other values.

import { byId, displayName, make, setText } from "./dom.js";

const MAX_CHECKBOXES = 12; // per attribute

/** Show filters for a bundle's attributes. Selected values stay selected if the bundle has their attribute. */
export function showFilters(attributes, onChange) {
  const selected = selectedValues();
  byId("filters").hidden = !attributes.length;
  byId("attributes").replaceChildren(...attributes.map((one) => fieldset(one, selected.get(one.name) ?? [])));
  byId("attributes").oninput = () => {
    showCount();
    onChange();
  };
  showCount();
}

/** Return the filter for a request; undefined if nothing is selected. */
export function currentFilter() {
  const values = selectedValues();
  return values.size ? Object.fromEntries(values) : undefined; // fromEntries defines even __proto__ as a plain property
}

/** Return the selected values per attribute; a Map, because an attribute may be named __proto__. */
function selectedValues() {
  const selected = new Map();
  for (const group of byId("attributes").children) {
    const values = [...group.querySelectorAll("input:checked")].map((box) => JSON.parse(box.value));
    for (const field of group.querySelectorAll("input[type=text]")) {
      const typed = field.value.split(",").map((text) => text.trim()).filter(Boolean);
      values.push(...typed.map((text) => parseValue(text, field.dataset.kind)));
    }
    if (values.length) selected.set(group.dataset.name, values);
  }
  return selected;
}

function fieldset(attribute, selected) {
  const exact = attribute.values.filter((value) => typeof value !== "number" || Math.abs(value) <= Number.MAX_SAFE_INTEGER);
  const shown = exact.slice(0, MAX_CHECKBOXES);
  const boxes = shown.map((value) => {
    const box = make("input");
    box.type = "checkbox";
    box.value = JSON.stringify(value);
    box.checked = selected.includes(value);
    return make("label", "", box, String(value));
  });
  const group = make("fieldset", "", make("legend", "", displayName(attribute.name)), ...boxes);
  group.dataset.name = attribute.name;
  if (attribute.more || attribute.values.length > boxes.length) group.append(otherValuesField(attribute, shown, selected));
  return group;
}

function otherValuesField(attribute, shown, selected) {
  const field = make("input");
  field.type = "text";
  field.placeholder = "other values, separated by commas";
  field.setAttribute("aria-label", `Other values of ${displayName(attribute.name)}, separated by commas`);
  field.dataset.kind = typeof (attribute.values[0] ?? "");
  field.value = selected.filter((value) => !shown.includes(value)).join(", ");
  return field;
}

function parseValue(text, kind) {
  return kind === "number" && Number.isFinite(Number(text)) ? Number(text) : text;
}

function showCount() {
  const attributes = selectedValues().size;
  setText(byId("filters-count"), attributes ? `(${attributes})` : "");
}
