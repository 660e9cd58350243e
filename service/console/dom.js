// Helpers for the document. Text from outside becomes text nodes, never markup.

export const byId = (id) => document.getElementById(id);

/** Create an element with a class and children, which are elements or text. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

/** Set an element's text if it differs, so that screen readers announce only changes. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show a message in an element, or hide the element if there is none. */
export function showMessage(element, message) {
  setText(element, message ?? "");
  element.hidden = !message;
}

export const integer = new Intl.NumberFormat("en");

/** Format a number with about three significant digits. */
export function short(value) {
  if (!value) return "0";
  return value >= 100 ? integer.format(Math.round(value)) : value.toFixed(value >= 10 ? 1 : 2);
}

/** Display name of an attribute; a placeholder for a blank one. */
export const displayName = (name) => (name.trim() ? name : "(no name)");
