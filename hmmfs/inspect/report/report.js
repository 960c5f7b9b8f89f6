// Draws the page from the JSON in #data. Names reach the page by textContent and setAttribute only.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const samples = data.samples;
  const times = samples.t;
  const PAGE = 4096;
  const SVG = "http://www.w3.org/2000/svg";
  const byId = (id) => document.getElementById(id);

  // Columns of an event.
  const [T, DEVICE, EVENT, REGION, FIRST, PAGES, FROM, TO, TRIGGER, BYTES, US, SIM] = Array(12).keys();
  const events = data.events.map((row) =>
    row.map((value, column) =>
      [DEVICE, EVENT, REGION, FROM, TO, TRIGGER].includes(column) ? data.words[value] : value));
  const isEviction = (event) => event[EVENT] === "migrate_end" && event[TRIGGER] === "eviction";
  const isThrashing = (event) => event[EVENT] === "thrashing";
  const evictions = events.filter(isEviction);
  const thrashing = events.filter(isThrashing);
  const last = (list) => (list.length ? list[list.length - 1] : 0);
  const span = Math.max(
    data.duration, last(times), last(events.map((event) => event[T])), 1e-6);

  // ---- making things

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {}))
      if (value !== undefined) element.setAttribute(name, value);
    for (const child of children.flat())
      if (child !== null && child !== undefined) element.append(child);
    return element;
  }
  const make = (tag, attributes, ...children) =>
    fill(document.createElement(tag), attributes, children);
  const draw = (tag, attributes, ...children) =>
    fill(document.createElementNS(SVG, tag), attributes, children);
  const name = (text) => make("bdi", { class: "name" }, text || "-");
  const nodeClass = (index) => "node" + (index < 9 ? index : 1 + ((index - 1) % 8));

  // ---- numbers as people read them

  const count = (number) => Math.round(number).toLocaleString("en-US");
  function scaled(number, factor, units) {
    let step = 0;
    while (Math.abs(number) >= factor && step < units.length - 1) { number /= factor; step += 1; }
    const digits = step === 0 || Math.abs(number) >= 100 ? 0 : Math.abs(number) >= 10 ? 1 : 2;
    return `${Number(number.toFixed(digits))} ${units[step]}`;
  }
  const bytes = (number) => scaled(number, 1024, ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]);
  const speed = (number) => `${Number(number.toPrecision(3))} MB/s`;
  const micros = (us) => us < 1000 ? `${Number(us.toPrecision(3))} µs`
    : us < 1e6 ? `${Number((us / 1e3).toPrecision(3))} ms` : `${Number((us / 1e6).toPrecision(3))} s`;
  const seconds = (t) => `${t.toFixed(span < 0.1 ? 6 : span < 10 ? 4 : 3)} s`;

  // The first place in a sorted list whose key is not below t.
  function place(list, t, key) {
    let low = 0, high = list.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (key(list[middle]) < t) low = middle + 1; else high = middle;
    }
    return low;
  }
  // The last sample at or before t.
  const sampleAt = (t) => {
    const index = place(times, t, (each) => each);
    return times[index] === t ? index : Math.max(0, index - 1);
  };

  // ---- the top

  function head() {
    byId("command").textContent = data.command;
    const devices = data.nodes.slice(1);
    const facts = [
      data.started, seconds(data.duration),
      `${data.nodes[0]} ${bytes(data.capacity[0])}`,
      ...devices.map((node, index) => `${node} ${bytes(data.capacity[index + 1])}`),
      `on ${data.mount}`, `hmmfs ${data.version}`,
    ].filter(Boolean).map((text) => make("li", {}, text));
    const status = data.complete ? `exit status ${data.status}` : "no end recorded";
    facts.splice(2, 0, make("li", { id: "status", class: data.status === 0 ? "" : "bad" }, status));
    byId("facts").append(...facts);
    byId("notes").append(...data.notes.map((text) => make("p", { class: "note" }, text)));
  }

  function figures() {
    const figure = (id, value, label, hot) =>
      make("div", { class: hot ? "figure hot" : "figure", "data-figure": id },
        make("b", {}, value), make("span", {}, label));
    const all = data.faults.map((row) =>
      figure(`faults-${row.accessor}`, count(row.total),
        row.accessor === "cpu" ? "faults of programs on the CPU" : `faults of ${row.accessor}`));
    for (const row of data.ways.filter((each) => each.bytes).slice(0, 6))
      all.push(figure(`bytes-${row.name.join("-")}`, bytes(row.bytes),
        `copied ${row.name[0]} → ${row.name[1]}`));
    const pages = data.evicted_pages === null ? data.evicted_spans : data.evicted_pages;
    all.push(figure("evicted_pages", count(pages),
      `pages evicted, in ${count(data.evictions)} evictions`, pages > 0));
    all.push(figure("thrashing", count(data.thrashing.length),
      data.thrashing.length === 1 ? "region and device thrash" : "regions and devices thrash",
      data.thrashing.length > 0));
    byId("figures").append(...all);
  }

  function verdicts() {
    const found = data.thrashing.map((row) =>
      make("div", { class: "verdict", "data-region": row.region, "data-device": row.device,
        "data-cause": row.cause },
      make("strong", {}, name(row.region), ` thrashes on ${row.device}: ${row.cause}`),
      make("span", { class: "soft" },
        ` · ${count(row.events)} times, ${count(row.pages)} pages, ` +
        `from ${seconds(row.first)} to ${seconds(row.last)}`),
      make("p", {}, row.why), make("p", { class: "soft" }, row.advice)));
    if (!found.length)
      found.push(make("div", { class: "verdict good" }, make("strong", {}, "Nothing thrashed. "),
        data.lost ? "So say the events that were not lost." : data.evictions
          ? "What was evicted was not wanted back soon." : "Nothing was evicted, either."));
    byId("verdicts").append(...found);
  }

  // ---- pictures over time. Each is {element, draw(width), cursor(x)}; x in pixels.

  const charts = [];
  const state = { t: 0, pinned: false };
  const xOf = (t, width) => (t / span) * width;
  const legend = (label, swatch) =>
    make("span", { class: "key" }, make("i", { class: `swatch ${swatch}` }), label);

  function chart(parent, kind, title, keys, height, paint, shown) {
    const svg = draw("svg", { height, role: "img" });
    const element = make("div", { class: "chart", "data-chart": kind, "data-name": shown },
      make("div", { class: "chart-head" }, make("b", {}, title), make("span", {}, ...keys)), svg);
    parent.append(element);
    const line = draw("line", { class: "cursor", y1: 0, y2: height - 18 });
    let width = 0;
    const tAt = (x) => Math.min(span, Math.max(0, ((x - svg.getBoundingClientRect().left) / width) * span));
    svg.addEventListener("pointermove", (event) => {
      if (!state.pinned) moveTo(tAt(event.clientX));
    });
    svg.addEventListener("click", (event) => {
      if (event.target.dataset.t === undefined) { moveTo(tAt(event.clientX)); pin(!state.pinned); }
    });
    charts.push({
      draw() {
        width = Math.max(200, svg.clientWidth || element.clientWidth - 32);
        svg.replaceChildren(...paint(width, height - 18), ...ticks(width, height), line);
      },
      cursor(t) {
        const x = xOf(t, width);
        line.setAttribute("x1", x);
        line.setAttribute("x2", x);
      },
    });
  }

  function ticks(width, height) {
    const steps = Math.max(2, Math.min(8, Math.floor(width / 110)));
    return Array.from({ length: steps + 1 }, (_, index) => {
      const x = (index / steps) * width;
      return draw("text", { x, y: height - 3,
        "text-anchor": index === 0 ? "start" : index === steps ? "end" : "middle" },
      seconds((index / steps) * span));
    });
  }

  function gridLines(width, height, top, label) {
    return [0.5, 1].flatMap((part) => {
      const y = height * (1 - part * 0.86);
      return [draw("line", { class: "grid", x1: 0, x2: width, y1: y, y2: y }),
        draw("text", { x: 3, y: y + 11 }, label(top * part))];
    });
  }

  function outline(upper, lower, width, y) {
    const point = (value, index) => `${xOf(times[index], width).toFixed(1)},${y(value).toFixed(1)}`;
    const back = lower.map(point).reverse();
    return `M${upper.map(point).join("L")}L${back.join("L")}Z`;
  }

  // Areas on top of each other; the highest reaches 86 % of the height, marks have the rest.
  function stack(series, top, width, height) {
    const y = (value) => height * (1 - 0.86 * (top ? value / top : 0));
    let below = times.map(() => 0);
    return series.map(({ index, values }) => {
      const above = below.map((value, at) => value + values[at]);
      const path = draw("path", { class: nodeClass(index), d: outline(above, below, width, y) });
      below = above;
      return path;
    });
  }

  // One mark for what is closer together than 6 pixels: at the time of the first.
  function marks(found, kind, y, width) {
    const heaps = new Map();
    for (const event of found) {
      const heap = Math.floor(xOf(event[T], width) / 6);
      if (heaps.has(heap)) heaps.get(heap).push(event); else heaps.set(heap, [event]);
    }
    return [...heaps.values()].map((heap) => {
      const t = heap[0][T], x = xOf(t, width);
      const mark = draw("path", {
        class: `${kind}-mark`, d: `M${x - 4},${y}h8l-4,7z`, "data-t": t, "data-count": heap.length,
        "data-region": heap[0][REGION],
      }, draw("title", {}, `${heap.length} × ${kind}, the first at ${seconds(t)}`));
      mark.addEventListener("click", () => { moveTo(t); pin(true); });
      return mark;
    });
  }

  const largest = (list) => list.reduce((most, value) => Math.max(most, value), 0);

  function timeline() {
    const parent = byId("timeline");
    if (!times.length) {
      parent.append(make("p", { class: "note" }, "There is no sample in this recording."));
      return;
    }
    data.nodes.forEach((node, index) => {
      if (index === 0) return;
      const used = samples.used[index], capacity = data.capacity[index];
      const top = Math.max(largest(used), capacity, 1);
      const mine = evictions.filter((event) => event[FROM] === node);
      chart(parent, "vram", make("span", {}, `VRAM of ${node}`),
        [`${bytes(data.peak[index])} at most, of ${bytes(capacity)}`], 110, (width, height) => {
          const y = height * (1 - (0.86 * capacity) / top);
          return [...gridLines(width, height, top, bytes),
            ...stack([{ index, values: used }], top, width, height),
            draw("line", { class: "capacity", x1: 0, x2: width, y1: y, y2: y }),
            ...marks(mine, "eviction", 0, width)];
        }, node);
    });
    for (const region of samples.regions) {
      const totals = times.map((_, at) =>
        region.pages.reduce((sum, values) => sum + values[at], 0));
      const top = Math.max(largest(totals), 1);
      const held = region.pages.map((values, index) => ({ index, values }))
        .filter(({ values }) => values.some(Boolean));
      const here = (event) => event[REGION] === region.name;
      const evicted = evictions.filter(here), thrashed = thrashing.filter(here);
      chart(parent, "region", make("span", {}, "Region ", name(region.name)),
        [`${bytes(largest(region.size))}`,
          ...held.map(({ index }) => legend(data.nodes[index], nodeClass(index)))],
        140, (width, height) => [
          ...gridLines(width, height, top, (pages) => bytes(pages * PAGE)),
          ...stack(held, top, width, height),
          ...marks(evicted, "eviction", 0, width), ...marks(thrashed, "thrashing", 9, width),
        ], region.name);
    }
  }

  function links() {
    const parent = byId("links");
    for (const link of samples.links) {
      const [from, to] = link.name.split("-");
      const rate = (totals) => times.map((t, at) => at === 0 || t <= times[at - 1] ? 0
        : Math.max(0, totals[at] - totals[at - 1]) / (t - times[at - 1]) / 1e6);
      const forward = rate(link.forward), back = rate(link.back);
      if (!last(link.forward) && !last(link.back)) continue;
      const top = Math.max(largest(forward), largest(back), 1e-9);
      chart(parent, "link", make("span", {}, name(link.name)),
        [legend(`${from} → ${to}: ${bytes(last(link.forward))}`, "forward"),
          legend(`${to} → ${from}: ${bytes(last(link.back))}`, "back")],
        130, (width, height) => {
          const middle = height / 2, y = (value) => middle - (value / top) * (middle - 2);
          const steps = (rates, sign) => {
            let path = `M0,${middle}`;
            rates.forEach((value, at) => {
              if (at) path += `L${xOf(times[at - 1], width).toFixed(1)},${y(sign * value).toFixed(1)}` +
                `L${xOf(times[at], width).toFixed(1)},${y(sign * value).toFixed(1)}`;
            });
            return `${path}L${xOf(last(times), width).toFixed(1)},${middle}Z`;
          };
          return [
            draw("path", { class: "forward", d: steps(forward, 1) }),
            draw("path", { class: "back", d: steps(back, -1) }),
            draw("line", { class: "grid", x1: 0, x2: width, y1: middle, y2: middle }),
            draw("text", { x: 3, y: 11 }, speed(top)),
            draw("text", { x: 3, y: height - 3 }, speed(top)),
          ];
        }, link.name);
    }
    if (!parent.children.length)
      parent.append(make("p", { class: "soft" }, "Nothing went over a link."));
  }

  // ---- the cursor and its panel

  function pin(on) {
    state.pinned = on;
    byId("pinned").hidden = !on;
  }

  function moveTo(t) {
    state.t = Math.min(span, Math.max(0, t));
    for (const each of charts) each.cursor(state.t);
    const timelineElement = byId("timeline");
    timelineElement.setAttribute("aria-valuemax", span);
    timelineElement.setAttribute("aria-valuenow", state.t);
    timelineElement.setAttribute("aria-valuetext", seconds(state.t));
    byId("cursor-time").textContent = seconds(state.t);
    byId("cursor-time").dataset.t = state.t;
    if (times.length) byId("panel-state").replaceChildren(...stateAt(sampleAt(state.t)));
    byId("panel-events").replaceChildren(...eventsAround(state.t));
  }

  function stateAt(at) {
    const uses = data.nodes.slice(1).map((node, index) => {
      const used = samples.used[index + 1][at], capacity = data.capacity[index + 1];
      const bar = make("i", { class: nodeClass(index + 1) });
      bar.style.width = `${capacity ? Math.min(100, (100 * used) / capacity) : 0}%`;
      return make("div", { class: "use", "data-node": node, "data-used": used },
        node, make("div", { class: "track" }, bar), `${bytes(used)} of ${bytes(capacity)}`);
    });
    const rows = samples.regions.map((region) =>
      make("tr", { "data-region": region.name }, make("td", {}, name(region.name)),
        ...region.pages.map((values, index) =>
          make("td", { "data-node": data.nodes[index], "data-pages": values[at] },
            values[at] ? bytes(values[at] * PAGE) : "·"))));
    const table = make("table", { id: "panel-regions" }, make("tr", {}, make("th", {}, "region"),
      ...data.nodes.map((node) => make("th", {}, node))), ...rows);
    const faults = samples.faults.map((each) => `${each.accessor} ${count(each.count[at])}`);
    return [...uses, table, make("p", { class: "soft" }, `Faults until then: ${faults.join(", ")}`)];
  }

  const VERBS = {
    page_fault_end: "fault", migrate_end: "moved", unmap: "unmapped", queue_eviction: "waits for VRAM",
    queue_restore: "goes on", read_duplicate: "copied for reading", read_duplicate_invalidate: "copy dropped",
    map_remote: "mapped remotely",
  };

  function eventsAround(t) {
    const at = place(events, t, (event) => event[T]);
    const first = Math.max(0, Math.min(at - 6, events.length - 16));
    return events.slice(first, first + 16).map((event, offset) => {
      const kind = isEviction(event) ? "eviction" : isThrashing(event) ? "thrashing" : "";
      const verb = kind === "eviction" ? "evicted" : VERBS[event[EVENT]] || event[EVENT];
      const delta = (event[T] - t) * 1e6;
      const way = event[FROM] || event[TO] ? ` ${event[FROM] || "-"} → ${event[TO] || "-"}` : "";
      return make("li", {
        class: kind, "data-t": event[T], "data-event": event[EVENT], "data-trigger": event[TRIGGER],
        "data-region": event[REGION], "aria-current": first + offset === at ? "true" : undefined,
      },
      make("span", { class: "when" }, `${delta < 0 ? "−" : "+"}${micros(Math.abs(delta))}`),
      make("span", {}, `${event[DEVICE]} `, make("b", {}, verb), " ", name(event[REGION]),
        ` ${event[FIRST]}+${event[PAGES]}${way}`,
        make("span", { class: "soft" }, [
          event[TRIGGER] && kind !== "eviction" ? event[TRIGGER].replaceAll("_", " ") : "",
          event[BYTES] ? bytes(event[BYTES]) : "", event[US] ? micros(event[US]) : "",
          event[SIM] ? `${micros(event[SIM])} simulated` : "",
        ].filter(Boolean).map((text) => ` · ${text}`).join(""))));
    });
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onTimeline = document.activeElement === byId("timeline");
    const steps = event.shiftKey ? 10 : 1;
    const go = (direction) => {
      if (!times.length) return state.t + (direction * steps * span) / 100;
      const at = place(times, state.t, (each) => each);
      const from = direction > 0 && times[at] !== state.t ? at - 1 : at;
      return times[Math.min(times.length - 1, Math.max(0, from + direction * steps))];
    };
    let t;
    if (event.key === "ArrowRight") t = go(1);
    else if (event.key === "ArrowLeft") t = go(-1);
    else if (event.key === "Home" && onTimeline) t = 0;
    else if (event.key === "End" && onTimeline) t = span;
    else if (event.key === "e") t = (evictions.find((each) => each[T] > state.t) || [])[T];
    else if (event.key === "E") t = (evictions.findLast((each) => each[T] < state.t) || [])[T];
    else if (event.key === "Escape") return pin(false);
    else return;
    event.preventDefault();
    if (t === undefined) return;
    moveTo(t);
    pin(true);
  }

  // ---- tables

  function table(id, headings, rows, key) {
    const most = largest(rows.map((row) => row.weight));
    byId(id).append(make("tr", {}, ...headings.map((text) => make("th", {}, text))),
      ...rows.map((row) => {
        const bar = make("i", {});
        bar.style.width = `${most ? (100 * row.weight) / most : 0}%`;
        return make("tr", { [`data-${key}`]: row.key }, ...row.cells.map((cell) => make("td", {}, cell)),
          make("td", { class: "bar" }, make("div", { class: "track" }, bar)));
      }));
  }

  function tables() {
    const words = (trigger) => (trigger || "none").replaceAll("_", " ");
    table("triggers", ["trigger", "moves", "bytes copied", "time", "simulated", ""],
      data.triggers.map((row) => ({ key: row.name[0], weight: row.bytes, cells:
        [words(row.name[0]), count(row.moves), bytes(row.bytes), micros(row.us), micros(row.sim_us)] })),
      "trigger");
    table("faults", ["accessor", "read", "write", "all", "waited", ""],
      data.faults.map((row) => ({ key: row.accessor, weight: row.total, cells:
        [row.accessor, count(row.read), count(row.write), count(row.total), micros(row.us)] })),
      "accessor");
    table("blocks", ["block of 2 MiB", "offset", "moves", "faults", "evictions", ""],
      data.blocks.map((row) => ({ key: `${row.region}:${row.block}`, weight: row.moves + row.faults, cells:
        [make("span", {}, name(row.region), ` ${count(row.block)}`), bytes(row.block * 512 * PAGE),
          count(row.moves), count(row.faults), count(row.evictions)] })),
      "block");
    table("ways", ["from → to", "moves", "bytes copied", "time", "simulated", ""],
      data.ways.map((row) => ({ key: row.name.join("-"), weight: row.bytes, cells:
        [row.name.join(" → "), count(row.moves), bytes(row.bytes), micros(row.us), micros(row.sim_us)] })),
      "way");
    byId("machine").append(...data.topology.map((row, index) =>
      make("tr", {}, ...row.map((cell, column) =>
        make(index && column ? "td" : "th", {}, cell === "-" && !index ? "link" : cell)))));
  }

  head();
  figures();
  verdicts();
  timeline();
  links();
  tables();
  byId("footer").textContent = `${count(data.events_recorded)} events recorded, ${count(data.lost)} lost; ` +
    "bytes are those copied, times those of the recording machine unless they are called simulated.";
  function redraw() {
    for (const each of charts) each.draw();
    moveTo(state.t);
  }
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(redraw);
  });
  document.addEventListener("keydown", keys);
  redraw();
  document.body.dataset.ready = "true";
})();
