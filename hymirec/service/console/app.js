// The console. Every text of the service is set as text, never as markup.
const LIST = 30;
const SHARE = 5;
const VISIBLE_MS = 30000;
const HEALTH_MS = 5000;
const RECENT = 12;
const at = (id) => document.getElementById(id);

const state = { mode: "user", user: "", list: [], shown: new Set(), turn: 0, token: sessionStorage.getItem("token") ?? "" };

async function call(method, path, body) {
  const headers = { "content-type": "application/json" };
  if (state.token) headers.authorization = `Bearer ${state.token}`;
  const reply = await fetch(`..${path}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const found = await reply.json().catch(() => ({}));
  if (reply.ok) return found;
  if (reply.status === 401) at("token-form").hidden = false;
  throw new Error(found.detail ?? `status ${reply.status}`);
}

function node(kind, attributes = {}, ...children) {
  const made = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function mark(kind, attributes, title) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (title) {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "title");
    text.textContent = title;
    made.append(text);
  }
  return made;
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").className = bad ? "bad" : "";
}

function name(item) {
  return item.title || item.item_id;
}

function eventId() {
  // `randomUUID` exists on https and on localhost alone.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function when(ts) {
  return new Date(ts * 1000).toISOString().slice(0, 16).replace("T", " ");
}

// --- what is shown ---------------------------------------------------------------------------------------------------

function itemButton(item, figure) {
  const fresh = state.shown.size > 0 && !state.shown.has(item.item_id);
  const right = node("span", { class: "figure" }, figure);
  if (fresh) right.prepend(node("span", { class: "new" }, "new "));
  return node("button", { type: "button", "data-item": item.item_id, onclick: () => choose(item) }, name(item), right);
}

function showInterests(reply) {
  const groups = reply.interests.map((interest) => ({
    interest,
    items: reply.items.filter((item) => item.interest === interest.number),
  }));
  const popular = reply.items.filter((item) => item.interest === null);
  if (popular.length) groups.push({ interest: null, items: popular });
  at("interests").replaceChildren(
    ...groups.map(({ interest, items }) => {
      const heading = interest === null ? "Popular now" : `Interest ${interest.number + 1}`;
      const column = node("div", { class: interest === null ? "interest" : `interest i${interest.number % 5}` });
      column.append(node("h3", {}, heading));
      if (interest !== null) {
        column.append(node("p", { class: "hint" }, `strength ${interest.strength.toFixed(2)}, nearest of the history:`));
        column.append(
          node("ul", { class: "near" }, ...interest.nearest.map((n) => node("li", {}, `${name(n)} (${n.cosine.toFixed(2)})`))),
        );
      }
      column.append(node("ul", { class: "items" }, ...items.map((item) => node("li", {}, itemButton(item, item.score.toFixed(3))))));
      if (!items.length) {
        column.append(node("p", { class: "hint" }, "None of the best items is this interest's. Alone it would find:"));
        column.append(
          node("ul", { class: "near" }, ...interest.finds.map((n) => node("li", {}, `${name(n)} (${n.cosine.toFixed(2)})`))),
        );
      }
      return column;
    }),
  );
  const reasons = {
    full: "Click an item: an event is sent, and the interests move.",
    cold_start: "No known item in the history: what is popular now.",
    behind: "The history does not hold the newest event yet.",
  };
  at("reason").textContent = reasons[reply.reason] ?? reply.reason;
}

function showHistory(reply) {
  const newestFirst = [...reply.history].reverse();
  at("history").replaceChildren(
    ...newestFirst.map((item) =>
      node("li", {}, node("span", { class: "line" }, node("span", {}, name(item)), node("span", { class: "figure" }, when(item.ts)))),
    ),
  );
  const unknown = reply.unknown_items ? `; ${reply.unknown_items} events of items that the bundle does not know` : "";
  at("history-count").textContent = `${reply.history.length} different items, the newest first${unknown}`;
}

function showMap(reply) {
  const place = (spot) => ({ cx: (spot.x * 100).toFixed(1), cy: (-spot.y * 100).toFixed(1) });
  const colour = (number) => (number === null ? "" : `i${number % 5}`);
  const marks = [
    mark("line", { class: "axis", x1: -105, x2: 105, y1: 0, y2: 0 }),
    mark("line", { class: "axis", y1: -105, y2: 105, x1: 0, x2: 0 }),
    ...reply.history.map((item) => mark("circle", { class: "past", r: 2, ...place(item) }, name(item))),
    ...reply.items.map((item) => mark("circle", { class: `item ${colour(item.interest)}`, r: 2.5, ...place(item) }, name(item))),
  ];
  for (const interest of reply.interests) {
    const spot = place(interest);
    const label = mark("text", { x: spot.cx, y: spot.cy });
    label.textContent = interest.number + 1;
    marks.push(mark("circle", { class: `interest-mark ${colour(interest.number)}`, r: 6, ...spot }, `interest ${interest.number + 1}`), label);
  }
  at("map").replaceChildren(...marks);
  at("map-text").textContent =
    `${reply.interests.length} interests (numbers), ${reply.items.length} items in their colours, ${reply.history.length} items of the ` +
    `history (rings). The map shows ${Math.round(reply.map_share * 100)} % of how they differ, and may turn from one answer to the next.`;
}

function show(reply) {
  const focused = document.activeElement?.dataset?.item;
  showInterests(reply);
  showHistory(reply);
  showMap(reply);
  at("health-bundle").textContent = reply.bundle.slice(0, 12);
  state.shown = new Set(reply.items.map((item) => item.item_id));
  if (focused !== undefined) {
    // What had the focus may be gone from the list.
    const buttons = [...at("interests").querySelectorAll("button")];
    (buttons.find((button) => button.dataset.item === focused) ?? buttons[0] ?? at("query")).focus();
  }
}

// --- what is asked ---------------------------------------------------------------------------------------------------

function question(extra = {}) {
  const who = state.mode === "user" ? { user_id: state.user } : { history: state.list.map((item) => [item.item_id, item.ts]) };
  return { ...who, k: LIST, per_interest: at("shares").checked ? SHARE : 0, ...extra };
}

async function refresh() {
  const turn = ++state.turn;
  if (state.mode === "user" && !state.user) return;
  try {
    const reply = await call("POST", "/v1/explain", question());
    if (turn === state.turn) show(reply);
  } catch (error) {
    say(error.message, true);
  }
}

async function choose(item) {
  const ts = Math.floor(Date.now() / 1000);
  if (state.mode === "list") {
    state.list.push({ ...item, ts });
    say(`${name(item)} is in the list`);
    await refresh();
    return;
  }
  if (!state.user) {
    say("Give a user id first.", true);
    at("user").focus();
    return;
  }
  const turn = ++state.turn;
  const begun = performance.now();
  try {
    say(`sending: ${name(item)}`);
    const event = { event_id: eventId(), user_id: state.user, item_id: item.item_id, ts, action: "click" };
    await call("POST", "/v1/events", event);
    while (turn === state.turn) {
      const reply = await call("POST", "/v1/explain", question({ min_ts: ts }));
      const elapsed = performance.now() - begun;
      if (turn !== state.turn) return;
      if (reply.history.some((past) => past.item_id === item.item_id && past.ts >= ts)) {
        show(reply);
        say(`${name(item)}: visible in the answer after ${Math.round(elapsed)} ms`);
        return;
      }
      if (elapsed > VISIBLE_MS) {
        say("The event was sent, but is not visible yet. Is the history writer behind?", true);
        return;
      }
      await new Promise((resume) => setTimeout(resume, 20));
    }
  } catch (error) {
    say(error.message, true);
  }
}

async function find(event) {
  event.preventDefault();
  try {
    const reply = await call("GET", `/v1/items?limit=15&q=${encodeURIComponent(at("query").value)}`);
    at("found").replaceChildren(
      ...reply.items.map((item) =>
        node(
          "li",
          {},
          node("button", { type: "button", onclick: () => choose(item) }, name(item), node("span", { class: "figure" }, `${item.popularity} events`)),
        ),
      ),
    );
    say(`${reply.items.length} items found`);
  } catch (error) {
    say(error.message, true);
  }
}

async function health() {
  const status = at("health-status");
  try {
    const reply = await call("GET", "/readyz");
    status.textContent = "well";
    status.className = "good";
    status.removeAttribute("title");
    at("health-bundle").textContent = (reply.bundle ?? "-").slice(0, 12);
    at("health-lag").textContent = Object.values(reply.lag).reduce((sum, lag) => sum + lag, 0);
  } catch (error) {
    status.textContent = error.message;
    status.className = "bad";
  }
}

// --- who -------------------------------------------------------------------------------------------------------------

function recent() {
  try {
    return JSON.parse(localStorage.getItem("users") ?? "[]").filter((user) => typeof user === "string");
  } catch {
    return [];
  }
}

function offerUsers() {
  at("users").replaceChildren(...recent().map((user) => node("option", { value: user })));
}

function setMode(mode) {
  state.mode = mode;
  state.shown = new Set();
  at("mode-user").setAttribute("aria-pressed", mode === "user");
  at("mode-list").setAttribute("aria-pressed", mode === "list");
  at("user-form").hidden = mode !== "user";
  say(mode === "list" ? "What if: choose items, nothing is stored." : "");
  if (mode === "list") state.list = [];
  refresh();
}

function setUser(user) {
  state.user = user;
  state.shown = new Set();
  at("user").value = user;
  localStorage.setItem("users", JSON.stringify([user, ...recent().filter((other) => other !== user)].slice(0, RECENT)));
  offerUsers();
  history.replaceState(null, "", `#${encodeURIComponent(user)}`);
  say("");
  refresh();
}

at("user-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setUser(at("user").value);
});
at("item-form").addEventListener("submit", find);
at("shares").addEventListener("change", refresh);
at("mode-user").addEventListener("click", () => setMode("user"));
at("mode-list").addEventListener("click", () => setMode("list"));
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = at("token").value;
  sessionStorage.setItem("token", state.token);
  at("token-form").hidden = true;
  say("");
  refresh();
});
offerUsers();
if (location.hash.length > 1) setUser(decodeURIComponent(location.hash.slice(1)));
health();
setInterval(health, HEALTH_MS);
