// Making elements, and keeping those that are there: whatever has the focus, or is open, must outlive an update.

// Children are elements and texts; attributes with the value null or false are left out.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

// Writes only what differs, so that screen readers and selections are left alone.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Lets `parent` have one child for each item, in their order. Children are kept by their key: `create(item)` makes one,
// `update(child, item)` is called for all.
export function keyed(parent, items, key, create, update = () => {}) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const children = items.map((item) => {
    const name = String(key(item));
    const child = known.get(name) ?? create(item);
    child.dataset.key = name;
    update(child, item);
    return child;
  });
  const kept = new Set(children);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  children.forEach((child, place) => {
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
  });
}

// Lets `parent` have these children, unless it has the like.
export function setChildren(parent, ...children) {
  const next = make(parent.tagName, {}, ...children);
  if (next.innerHTML !== parent.innerHTML) parent.replaceChildren(...next.childNodes);
}

// Returns a function that calls the given one a little later, once for all calls in the meantime.
export function soon(action, pause) {
  let timer = null;
  return () => {
    timer ??= setTimeout(() => {
      timer = null;
      action();
    }, pause);
  };
}
