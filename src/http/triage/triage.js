// The triage page. Numbers arrive by server-sent events once a second, anomalies by page. All text is inserted as text, never as HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const MINUTES = 5 * 60; // seconds of numbers to keep
const history = []; // {time, numbers}, oldest first
let newest = 0; // the highest number in the table
let oldest = Infinity;
let opened = null; // the verdict in the dialog
let token = sessionStorage.getItem("token") ?? "";

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function drawn(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const short = (x) => (x >= 100 || Number.isInteger(x) ? Math.round(x).toLocaleString("en") : Number(x.toPrecision(3)).toString());
const clock = (ms) => new Date(ms).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" });

// --- Requests ---------------------------------------------------------------------------

async function ask(path) {
  for (;;) {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch(path, { headers });
    if (answer.status !== 401) return answer;
    await login();
  }
}

let asking = null;
function login() {
  asking ??= new Promise((entered) => {
    $("refused").textContent = token ? "Wrong token." : "";
    $("login").showModal();
    $("login").onclose = () => {
      token = $("token").value;
      sessionStorage.setItem("token", token);
      asking = null;
      entered();
    };
  });
  return asking;
}

// Not an EventSource: it cannot send the token.
async function listen() {
  for (;;) {
    let said = "no connection, retrying";
    try {
      const answer = await ask("events");
      if (!answer.ok) throw new Error((await answer.text()).trim());
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) if (event.startsWith("data:")) take(JSON.parse(event.slice(5)));
      }
    } catch (problem) {
      if (problem.message && !(problem instanceof TypeError)) said = problem.message;
    }
    $("state").textContent = said;
    $("state").className = "bad";
    await new Promise((later) => setTimeout(later, 2000));
  }
}

// --- Numbers ----------------------------------------------------------------------------

function take(numbers) {
  const time = Date.now() / 1000;
  if (history.length && numbers.uptime_seconds < history.at(-1).numbers.uptime_seconds) restart();
  history.push({ time, numbers });
  while (history[0].time < time - MINUTES - 2) history.shift();
  const model = numbers.model;
  $("model").textContent = `${model.name} ${model.version} · ${model.sha256.slice(0, 8)} · ${numbers.provider}`;
  $("state").textContent = numbers.ready ? "ready" : `waiting for the ${numbers.waiting_for.join(", the ")}`;
  $("state").className = numbers.ready ? "" : "bad";
  tiles(numbers);
  curve($("rate"), rates());
  curve($("lag"), history.map(({ time, numbers }) => [time, lag(numbers)]));
  scores(numbers);
  if (numbers.latest > newest && $("live").checked) refresh();
}

// Another process answers now: start over with its numbers and anomalies.
function restart() {
  history.length = 0;
  newest = 0;
  refresh();
}

const lag = (numbers) => numbers.partitions.reduce((sum, p) => sum + Math.max(0, p.lag), 0);

function ago(seconds) {
  const now = history.at(-1);
  const then = seconds ? history.find(({ time }) => time >= now.time - seconds) : null;
  return then === now ? null : then;
}

function rates() {
  return history.slice(1).map(({ time, numbers }, i) => {
    const before = history[i];
    return [time, (numbers.records.scored - before.numbers.records.scored) / (time - before.time)];
  });
}

function tiles(numbers) {
  const before = ago(10) ?? history.at(-1);
  const seconds = history.at(-1).time - before.time;
  const since = (of) => numbers.records[of] - before.numbers.records[of];
  const a_second = seconds ? since("scored") / seconds : 0;
  const share = numbers.records.scored ? numbers.records.anomalies / numbers.records.scored : 0;
  const all = [
    ["records a second", short(a_second)],
    ["scored", short(numbers.records.scored)],
    ["anomalies", short(numbers.records.anomalies)],
    ["flagged per 1,000", short(1000 * share), numbers.expected_anomaly_ratio && `${short(1000 * numbers.expected_anomaly_ratio)} if all were normal`],
    ["lag", short(lag(numbers))],
    ["dead letters", short(numbers.records.dead_letters)],
    ["unaccounted", short(numbers.records.unaccounted), numbers.records.unaccounted !== 0 && "a bug: report it"],
    ["drift (1 is as calibrated)", short(numbers.drift)],
  ];
  $("tiles").replaceChildren(
    ...all.map(([name, value, note]) => {
      const bad = name === "unaccounted" && value !== "0";
      return element("div", { class: bad ? "tile bad" : "tile" }, name, element("b", {}, value), note || "");
    }),
  );
}

function curve(svg, points) {
  const now = history.at(-1).time;
  const most = Math.max(1, ...points.map(([, y]) => y));
  const at = ([time, y]) => `${(400 - (400 * (now - time)) / MINUTES).toFixed(1)},${(142 - (125 * y) / most).toFixed(1)}`;
  svg.replaceChildren(
    drawn("text", { x: 2, y: 10 }, short(most)),
    drawn("line", { x1: 0, x2: 400, y1: 142, y2: 142, stroke: "var(--line)" }),
    drawn("polyline", { class: "curve", points: points.map(at).join(" ") }),
  );
}

function scores(numbers) {
  const { bounds, counts, normal } = numbers.scores;
  const before = ago(Number($("window").value))?.numbers.scores.counts ?? counts.map(() => 0);
  const seen = counts.map((count, i) => count - before[i]);
  const total = Math.max(1, seen.reduce((a, b) => a + b, 0));
  const width = 400 / counts.length;
  const height = (share) => 115 * Math.sqrt(share); // square root, so that a thousandth stays visible
  const parts = [];
  counts.forEach((_, i) => {
    const observed = height(seen[i] / total);
    const expected = height(Math.max(0, normal[i]));
    const title = i < bounds.length ? `up to ${short(bounds[i] / numbers.threshold)} × threshold` : "above";
    const bar = drawn("rect", { class: "observed-bar", x: i * width + 3, y: 130 - observed, width: width - 6, height: observed });
    bar.append(drawn("title", {}, `${title}: ${seen[i]} observed, ${(100 * normal[i]).toPrecision(2)} % expected of normal records`));
    parts.push(bar, drawn("rect", { class: "normal-bar", x: i * width + 3, y: 130 - expected, width: width - 6, height: expected }));
    if (i < bounds.length) parts.push(drawn("text", { x: (i + 1) * width, y: 143, "text-anchor": "middle" }, short(bounds[i] / numbers.threshold)));
  });
  const line = (bounds.findIndex((bound) => bound >= numbers.threshold * 0.999) + 1) * width;
  parts.push(drawn("line", { class: "threshold", x1: line, x2: line, y1: 4, y2: 130 }));
  parts.push(drawn("text", { x: 2, y: 10 }, "share (square-root scale)"));
  $("scores").replaceChildren(...parts);
}

// --- Anomalies --------------------------------------------------------------------------

function path(before) {
  const asked = new URLSearchParams();
  if ($("severity").value) asked.set("severity", $("severity").value);
  const seconds = Number($("since").value);
  if (seconds) asked.set("since_ms", Date.now() - 1000 * seconds);
  if (before) asked.set("before", before);
  return `anomalies?${asked}`;
}

let refreshing = false;
async function refresh() {
  if (refreshing) return;
  refreshing = true;
  try {
    const answer = await ask(path());
    if (!answer.ok) return;
    const found = await answer.json();
    const focused = document.activeElement?.dataset?.number;
    $("anomalies").replaceChildren(...found.map(row));
    if (focused) document.querySelector(`tr[data-number="${focused}"]`)?.focus();
    newest = Math.max(found[0]?.number ?? 0, history.at(-1)?.numbers.latest ?? 0);
    after(found);
  } finally {
    refreshing = false;
  }
}

async function older() {
  $("live").checked = false; // live updates would replace the older ones
  const found = await (await ask(path(oldest))).json();
  $("anomalies").append(...found.map(row));
  after(found);
}

function after(found) {
  oldest = found.at(-1)?.number ?? oldest;
  const rows = $("anomalies").rows.length;
  $("none").hidden = rows > 0;
  $("more").hidden = found.length < 200;
  const kept = history.at(-1)?.numbers.kept;
  $("count").textContent = rows ? `${rows.toLocaleString("en")} shown${kept ? `; the latest ${kept.toLocaleString("en")} are kept` : ""}` : "";
}

function row(anomaly) {
  const made = element(
    "tr",
    { tabindex: 0, "data-number": anomaly.number },
    element("td", {}, clock(anomaly.judged_ms)),
    element("td", { class: anomaly.severity }, anomaly.severity),
    element("td", {}, anomaly.anomaly_grade.toFixed(2)),
    element("td", {}, anomaly.p_value.toPrecision(2)),
    element("td", {}, ...reasons(anomaly, 2)),
    element("td", { class: "id" }, anomaly.id),
  );
  made.onclick = () => open(anomaly);
  return made;
}

function reasons(verdict, most) {
  const features = (verdict.relevant_attribution ?? []).map((a) => [
    a.share,
    `${a.feature} ${said(a.observed)}${a.unit ? ` ${a.unit}` : ""}`,
    `expected ${said(a.expected)}`,
  ]);
  const regions = (verdict.regions ?? []).map((r) => [r.share, `region ${r.width} × ${r.height} at ${r.x}, ${r.y}`, ""]);
  return [...features, ...regions].slice(0, most).map(([share, what, expected]) =>
    element(
      "div",
      { class: "reason" },
      element("meter", { value: share, title: `${Math.round(100 * share)} % of the residual` }),
      element("span", {}, `${Math.round(100 * share)} % ${what} `, element("span", { class: "expected" }, expected)),
    ),
  );
}

function likeness({ id, values }) {
  const told = Object.entries(values).map(([feature, value]) => `${feature} ${said(value)}`);
  return `most like the normal record${id ? ` ${id}` : ""}: ${told.join(", ")}`;
}

const said = (value) => (typeof value === "number" ? short(value) : String(value));

// --- Details ----------------------------------------------------------------------------

async function open(anomaly) {
  copy(anomaly.id);
  const answer = await ask(`anomalies/${anomaly.number}`);
  if (!answer.ok) return toast("this anomaly is no longer kept");
  opened = await answer.json();
  $("id").textContent = opened.id;
  const facts = [
    ["severity", opened.severity],
    ["score", short(opened.anomaly_score)],
    ["threshold", short(opened.threshold)],
    ["grade", opened.anomaly_grade.toFixed(2)],
    ...(opened.segment === undefined ? [] : [["segment", opened.segment]]),
    ["p-value", opened.p_value.toPrecision(2)],
    ["time of the record", opened.time ?? "none"],
    ["from", `${opened.source.topic}, partition ${opened.source.partition}, offset ${opened.source.offset}`],
  ];
  $("facts").textContent = facts.map(([name, value]) => `${name}: ${value}`).join(" · ");
  $("reasons").replaceChildren(...reasons(opened, 100));
  if (opened.feature_imputed?.length) $("reasons").append(`missing, filled in: ${opened.feature_imputed.join(", ")}`);
  if (opened.nearest_normal) $("reasons").append(element("p", { class: "expected" }, likeness(opened.nearest_normal)));
  $("record").textContent = opened.record ? JSON.stringify(opened.record, null, 2) : "not in the verdict: the record is a bare image, or output.include_record = false";
  await images(anomaly);
  $("detail").showModal();
}

async function images(anomaly) {
  const shown = [];
  if (anomaly.image) {
    const answer = await ask(`anomalies/${anomaly.number}/image`);
    if (answer.ok) shown.push(["original", URL.createObjectURL(await answer.blob())]);
  }
  for (const [kind, name] of [["reconstruction", "expected"], ["heatmap", "heat"]]) {
    const map = opened[kind];
    if (map?.data) shown.push([name, `data:${map.content_type};base64,${map.data}`]);
    else if (map?.uri) shown.push([`${name}: ${map.uri}`, null]);
  }
  $("images").replaceChildren(
    ...shown.map(([name, source], i) => {
      const frame = element("div", { class: "frame" });
      if (source) frame.append(element("img", { src: source, alt: name }));
      if (source && i === 0 && opened.picture) frame.append(...opened.regions.map((r) => box(r, opened.picture)));
      return element("figure", {}, frame, element("figcaption", {}, name));
    }),
  );
}

function box(region, image) {
  const made = element("div", { class: "region", title: `${Math.round(100 * region.share)} %` });
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  made.style.left = percent(region.x, image.width);
  made.style.top = percent(region.y, image.height);
  made.style.width = percent(region.width, image.width);
  made.style.height = percent(region.height, image.height);
  return made;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("id copied");
  } catch {
    toast("the id could not be copied: browsers allow this only over HTTPS or on localhost");
  }
}

let fading;
function toast(text) {
  $("toast").textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => ($("toast").textContent = ""), 2500);
}

// --- Events -----------------------------------------------------------------------------

$("severity").onchange = refresh;
$("since").onchange = refresh;
$("live").onchange = () => $("live").checked && refresh();
$("window").onchange = () => history.length && scores(history.at(-1).numbers);
$("more").onclick = older;
$("copy").onclick = () => copy(opened.id);
$("close").onclick = () => $("detail").close();
$("detail").onclose = () => {
  for (const img of $("images").querySelectorAll("img")) if (img.src.startsWith("blob:")) URL.revokeObjectURL(img.src);
};

document.onkeydown = (event) => {
  const row = event.target.closest?.("tbody tr");
  const rows = $("anomalies").rows;
  if ($("detail").open || $("login").open) return;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const next = row ? (event.key === "ArrowDown" ? row.nextElementSibling : row.previousElementSibling) : rows[0];
    if (next && (row || event.target === document.body)) {
      next.focus();
      event.preventDefault();
    }
  } else if (event.key === "Enter" && row) {
    row.click();
  }
};

refresh().catch(console.debug);
listen();
