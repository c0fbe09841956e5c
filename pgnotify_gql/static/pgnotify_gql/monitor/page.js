// The monitor: its feed, its state, and what a viewer does with them.

import { byId, make, setText } from "./dom.js";
import { explain } from "./explain.js";
import { Feed } from "./feed.js";
import { milliseconds, time } from "./format.js";
import { showErrors, showHubs, showJournals, showTriggers } from "./panels.js";
import { Plot } from "./plot.js";
import { Poller, RequestFailed, fetchJson } from "./poller.js";
import { Series } from "./series.js";
import { Tail } from "./tail.js";

const CHANGES = "subscription Monitor { changes { label pk kind changed at receivedAt delay xid journalId } }";
const DRAW_EVERY_MS = 1_000;

const data = JSON.parse(byId("monitor-data").textContent);
const beside = (path) => new URL(path, location.href);

// Plots

const series = new Series();
const perSecond = (value) => `${Number(value.toFixed(1)).toLocaleString("en")}/s`;
const rates = new Plot(byId("rate-plot"), byId("rate-legend"), perSecond);
const delays = new Plot(byId("delay-plot"), byId("delay-legend"), milliseconds);

function drawPlots() {
  series.prune();
  if (document.hidden) return;
  rates.draw(series.rates());
  delays.draw(series.delays());
}

// Changes

const model = byId("filter-model");
model.append(...data.models.map((label) => make("option", { value: label }, label)));

const tail = new Tail(
  {
    list: byId("tail"),
    note: byId("tail-note"),
    pause: byId("pause"),
    clear: byId("clear"),
    model,
    kinds: [...document.querySelectorAll(".pm-filter-kind")],
    key: byId("filter-key"),
  },
  (change, element) => explain(beside("explain.json"), change, element),
);

const feedUrl = beside("feed/");
feedUrl.protocol = feedUrl.protocol.replace("http", "ws");
feedUrl.search = feedUrl.hash = "";
const feed = new Feed(feedUrl.href, CHANGES, {
  onData: ({ changes }) => {
    series.add(changes.label, changes.delay);
    tail.add(changes);
  },
  onResync: (reason) => showNotice(`Some changes were not shown: ${reason}.`),
  onState: (state, text) => showState(byId("feed-state"), state, text),
});

// State

const poller = new Poller(beside("state.json"), {
  onState: (state) => {
    showState(byId("state-state"), "live", "State up to date");
    if (state.triggers) showTriggers(byId("triggers"), state.triggers, data.mayInstall, install);
    if (state.journals) showJournals(byId("journals"), state.journals);
    if (state.hubs) {
      showHubs(byId("hubs"), byId("hubs-note"), state.hubs);
      showErrors(byId("errors"), byId("errors-note"), state.hubs);
    }
  },
  onFailure: (sentence, seconds) =>
    showState(byId("state-state"), "refused", `State not up to date: ${sentence} Asking again in ${seconds} s.`),
});

async function install(database) {
  const result = byId("install-result");
  setText(result, `Installing in database ${database}…`);
  const body = new FormData(byId("csrf"));
  body.set("database", database);
  try {
    const { done, failures } = await fetchJson(beside("install/"), { method: "POST", body });
    setText(result, [...done, ...failures].join(". ") || "Nothing was missing.");
  } catch (error) {
    if (!(error instanceof RequestFailed)) throw error;
    setText(result, error.message);
  }
  poller.askNow();
}

function showState(element, state, text) {
  element.dataset.state = state;
  setText(element, text);
}

function showNotice(sentence) {
  setText(byId("notice"), `${time(Date.now() / 1000)}: ${sentence}`);
  byId("notice").hidden = false;
}

feed.connect();
poller.askNow();
drawPlots();
setInterval(drawPlots, DRAW_EVERY_MS);
