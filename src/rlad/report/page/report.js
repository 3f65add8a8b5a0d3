"use strict";
// Everything that is shown is put in as text (textContent); nothing that a model wrote becomes markup, a link or code.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const MAIN = document.getElementById("main");
  const PACKS = new Map();
  const FLAG = { mask: 1, low: 2, high: 4, clamped: 8, branch: 16 };
  const SVG = "http://www.w3.org/2000/svg", MATH = "http://www.w3.org/1998/Math/MathML";
  const LISTED = 500, COLOURS = 6;
  let channel = DATA.channels[0].key, view = null;

  // --- elements

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) if (value !== null) node.setAttribute(name, value);
    for (const child of children.flat(9)) {
      if (child !== null && child !== undefined && child !== false) node.append(child);
    }
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
  const link = (place, ...children) => el("a", { href: "#/" + place.join("/") }, children);
  const row = (cells, tag = "td") => el("tr", null, cells.map((cell) => el(tag, tag === "th" ? { scope: "col" } : null, cell)));
  function table(caption, heads, rows) {
    return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
      el("table", null, el("caption", null, caption), el("thead", null, row(heads, "th")), el("tbody", null, rows)));
  }
  function pairs(list) {
    return el("dl", null, list.map(([what, value]) => [el("dt", null, what), el("dd", null, value)]));
  }
  function number(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "-";
    if (value === 0) return "0";
    const size = Math.abs(value);
    const text = size < 1e-3 || size >= 1e5 ? size.toExponential(digits - 1) : String(Number(size.toPrecision(digits)));
    return (value < 0 ? "\u2212" : "+") + text;
  }
  const plain = (value) => number(value).replace(/^\+/, "");
  function pieces(shown) {
    return shown.map(([kind, text]) => {
      if (kind === "") return text;
      const node = el("span", { class: kind === "w" ? "space" : "named" }, text);
      return kind === "w" ? [node, text.includes("\u23ce") ? "\n" : el("wbr")] : node;
    });
  }
  function formula(tree) {
    if (typeof tree === "string") return tree;
    const [tag, attributes, children] = tree;
    if (!/^m[a-z]+$/.test(tag) || tag === "maction") return "";
    return fill(document.createElementNS(MATH, tag), attributes, children.map(formula));
  }
  const rendered = (parts) => parts.map((part) => (typeof part === "string" ? part : el("span", null, formula(part.tree))));
  function answer(given) {
    if (!given) return el("span", { class: "none" }, "none");
    const raw = el("span", { class: "raw" }, pieces(given.shown));
    return given.math ? [el("span", { class: "math" }, rendered(given.math)), " ", raw] : raw;
  }

  // --- the records of an update (rlad.report.pack)

  function unpack(run, step) {
    const id = `p-${run}-${step}`;
    if (!PACKS.has(id)) {
      const block = document.getElementById(id);
      PACKS.set(id, block ? read(block.textContent, run, step) : Promise.resolve(null));
    }
    return PACKS.get(id);
  }
  async function read(text, run, step) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    const size = new DataView(raw.buffer).getUint32(0, true);
    const head = JSON.parse(new TextDecoder().decode(raw.subarray(4, 4 + size)));
    let prompts = 0, count = 0, at = 4 + size;
    for (const group of head.groups) {
      prompts += group.prompt;
      for (const rollout of group.rollouts) count += rollout.length;
    }
    const tokens = new Uint32Array(raw.slice(at, at + 4 * (prompts + count)).buffer);
    at += 4 * (prompts + count);
    const arrays = {};
    for (const name of head.arrays) {
      arrays[name] = halves(raw.subarray(at, at + count), raw.subarray(at + count, at + 2 * count));
      at += 2 * count;
    }
    if (!arrays.old_logps) arrays.old_logps = arrays.logps;
    const flags = raw.subarray(at, at + count);
    let prompt = 0, token = 0;
    for (const group of head.groups) {
      group.place = [run, step, group.n];
      group.bounds = head.bounds;
      group.tokens = tokens.subarray(prompt, (prompt += group.prompt));
      for (const rollout of group.rollouts) {
        const part = [token, (token += rollout.length)];
        rollout.tokens = tokens.subarray(prompts + part[0], prompts + part[1]);
        rollout.flags = flags.subarray(...part);
        rollout.arrays = {};
        for (const name in arrays) if (arrays[name] && !group.dropped) rollout.arrays[name] = arrays[name].subarray(...part);
      }
    }
    return head;
  }
  function halves(high, low) {
    const values = new Float32Array(high.length);
    for (let i = 0; i < high.length; i++) {
      const exponent = (high[i] >> 2) & 31, fraction = ((high[i] & 3) << 8) | low[i];
      const size = exponent === 0 ? fraction * 2 ** -24
        : exponent === 31 ? (fraction ? NaN : Infinity) : (1024 + fraction) * 2 ** (exponent - 25);
      values[i] = high[i] & 128 ? -size : size;
    }
    return values;
  }
  function value(rollout, key, i) {
    const of = (name) => (rollout.arrays[name] ? rollout.arrays[name][i] : NaN);
    const weight = rollout.weight === null ? NaN : rollout.weight;
    if (key === "teacher") return of("teacher_logps") - of("logps");
    if (key === "contribution" || key === "changed") return of(key) * weight;
    if (key === "grpo") return (of("contribution") - of("changed")) * weight;
    return of(key);
  }

  // --- the runs, their figures and curves

  const methods = [...new Set(DATA.runs.map((run) => run.method))];
  const look = (number) => {
    const run = DATA.runs[number];
    const before = DATA.runs.slice(0, number).filter((other) => other.method === run.method).length;
    return { colour: methods.indexOf(run.method) % COLOURS, dash: ["", "6 3", "2 3", "8 3 2 3"][before % 4] };
  };
  const recorded = (run, step) => run.steps.find((each) => each.n === step);

  function home() {
    return [el("h2", { tabindex: "-1" }, DATA.runs.length === 1 ? "One run" : `${DATA.runs.length} runs`),
      DATA.runs.map(runSection), curveSection()];
  }
  function runSection(run, number) {
    const { colour, dash } = look(number);
    const sample = svg("svg", { class: "sample", viewBox: "0 0 30 10", "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 30, y1: 5, y2: 5, class: `line c${colour}`, "stroke-dasharray": dash }));
    return el("section", { class: "run" },
      el("h3", null, sample, " ", link([number], run.name)),
      run.result.length ? el("p", { class: "result" }, "Accuracy. ", run.result[run.result.length - 1]) : null,
      run.figures.length ? [el("h4", null, "What the records say"), figures(run, number)] : null,
      el("p", null, run.left), run.kept ? el("p", { class: "note" }, "Recorded: " + run.kept + ".") : null,
      run.mismatch > 1e-3 ? el("p", { class: "warning" },
        `The recorded log ratios and those computed from the recorded log-probabilities differ by up to ${plain(run.mismatch)} nats.`) : null,
      el("details", null, el("summary", null, "How it was made"), pairs(run.header),
        run.result.length > 1 ? el("ul", null, run.result.map((line) => el("li", null, line))) : null,
        run.recipe ? [el("h4", null, "Recipe"), el("pre", { tabindex: "0" }, run.recipe)] : null));
  }
  function figures(run, number) {
    return el("ul", { class: "figures" }, run.figures.map((figure) => {
      const shown = [el("strong", null, figure.value), " ", figure.what];
      return el("li", null, figure.place ? link([number, ...figure.place], shown) : shown);
    }));
  }
  function runView(number) {
    const run = DATA.runs[number];
    const shown = (filter) => run.steps.flatMap((step) => step.groups.flatMap((group) => group[5])).filter((each) => each[1] & (1 << filter)).length;
    return [el("h2", { tabindex: "-1" }, run.name), runSection(run, number),
      run.steps.length ? [
        el("h3", null, "Rollouts that stand out"),
        el("ul", { class: "filters" }, DATA.filters.map(([key, label, about], i) =>
          el("li", null, link([number, "filter", key], `${label} (${shown(i)})`), " ", el("span", { class: "note" }, about)))),
        el("h3", null, "Recorded updates"),
        table("Recorded updates", ["update", "groups", "of", "rollouts right", "zero variance", "in this page"], run.steps.map((step) => {
          const trained = step.groups.filter((group) => group[3] === null);
          const right = trained.map((group) => group[4]);
          return row([link([number, step.n], `update ${step.n}`), step.groups.length, step.of ?? "-",
            right.includes(null) ? "-" : `${right.reduce((a, b) => a + b, 0)} of ${trained.reduce((n, group) => n + group[5].length, 0)}`,
            trained.filter((group) => group[2]).length, step.here ? "yes" : "no"]);
        }))] : null];
  }
  function curveSection() {
    const titles = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.curves)))];
    if (!titles.length) return el("p", null, "There are no curves: no metrics.jsonl was found.");
    return el("section", { id: "curves" }, el("h3", null, "Curves"),
      el("p", { class: "note" }, "One colour for each method; runs of one method differ by their dashes. A ring is a recorded update: it opens when clicked, and so does the nearest one to any other point."),
      el("div", { class: "curves" }, titles.map(curve)));
  }
  function curve(title) {
    const runs = DATA.runs.map((run, number) => ({ run, number, points: run.curves[title] || [] })).filter((each) => each.points.length);
    const all = runs.flatMap((each) => each.points), W = 320, H = 170, L = 56, R = 8, T = 8, B = 24;
    const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
    const extent = (values) => [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    const [x0, x1] = extent(xs);
    let [y0, y1] = extent(ys);
    if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) / 2 || 0.5), y1 + (Math.abs(y1) / 2 || 0.5)];
    const x = (s) => (x1 === x0 ? (L + W - R) / 2 : L + ((s - x0) / (x1 - x0)) * (W - L - R));
    const y = (v) => H - B - ((v - y0) / (y1 - y0)) * (H - T - B);
    const tick = (at, v) => [svg("line", { x1: L, x2: W - R, y1: at, y2: at, class: "grid" }),
      svg("text", { x: L - 4, y: at + 4, "text-anchor": "end" }, plain(v))];
    const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": `${title} by update` },
      tick(y(y0), y0), tick(y(y1), y1), tick(y((y0 + y1) / 2), (y0 + y1) / 2),
      svg("text", { x: L, y: H - 6 }, String(x0)), svg("text", { x: W - R, y: H - 6, "text-anchor": "end" }, `update ${x1}`),
      runs.map(({ run, number, points }) => {
        const { colour, dash } = look(number);
        return [svg("polyline", { class: `line c${colour}`, "stroke-dasharray": dash, points: points.map(([s, v]) => `${x(s).toFixed(1)},${y(v).toFixed(1)}`).join(" ") }),
          points.filter(([s]) => recorded(run, s)).map(([s, v]) =>
            svg("a", { href: `#/${number}/${s}`, "aria-label": `${run.name}, update ${s}: ${title} ${plain(v)}` },
              svg("circle", { cx: x(s).toFixed(1), cy: y(v).toFixed(1), r: 4, class: `dot c${colour}` }), svg("title", null, `${run.name}, update ${s}: ${plain(v)}`)))];
      }));
    picture.addEventListener("click", (event) => {
      if (event.target.closest("a")) return;
      const box = picture.getBoundingClientRect(), scale = W / box.width;
      const px = (event.clientX - box.left) * scale, py = (event.clientY - box.top) * scale;
      let best = null, least = Infinity;
      for (const { number, points } of runs) for (const [s, v] of points) {
        const far = Math.hypot(x(s) - px, y(v) - py);
        if (far < least) [best, least] = [[number, s], far];
      }
      if (best) location.hash = "#/" + best.join("/");
    });
    const summary = runs.map(({ run, points }) => `${runs.length > 1 ? run.name + ": " : ""}${plain(points[0][1])} \u2192 ${plain(points[points.length - 1][1])}`).join("; ");
    return el("figure", null, el("figcaption", null, el("strong", null, title), DATA.units[title] ? ` (${DATA.units[title]})` : title.startsWith("seconds") ? " (per logged update)" : "", el("br"), el("span", { class: "note" }, summary)), picture);
  }

  // --- an update, a filter, a group

  function stepView(number, step, pack) {
    const run = DATA.runs[number], known = recorded(run, step);
    const values = Object.entries(run.curves).flatMap(([title, points]) => points.filter((p) => p[0] === step).map((p) => [title, plain(p[1])]));
    const nearest = run.steps.reduce((best, each) => (best === null || Math.abs(each.n - step) < Math.abs(best - step) ? each.n : best), null);
    const absent = !known
      ? el("p", null, "This update was not recorded. ", nearest === null ? run.left : ["The nearest that was: ", link([number, nearest], `update ${nearest}`), "."])
      : !known.here ? el("p", null, "The records of this update were left out of this page. ", run.left) : null;
    return [el("h2", { tabindex: "-1" }, `Update ${step}`), absent,
      pack ? table("Recorded groups", ["group", "why it was recorded", "right", "mean reward", "mean length", "note", "prompt"], pack.groups.map((group) => {
        const mean = (key) => group.rollouts.reduce((sum, each) => sum + each[key], 0) / group.rollouts.length;
        return row([link(group.place, `group ${group.n}`), group.why ?? "-", group.right === null ? "-" : `${group.right} of ${group.rollouts.length}`,
          plain(mean("reward")), Math.round(mean("length")), note(group), group.text.length > 160 ? group.text.slice(0, 160) + "\u2026" : group.text]);
      })) : null,
      values.length ? table("Numbers of this update", ["what", "value"], values.map((pair) => row(pair))) : null];
  }
  const note = (group) => [group.dropped ? `dropped: ${DATA.dropped[group.reason] ?? group.reason}. ` : "", group.flat ? el("span", { class: "flat" }, "zero variance") : ""];
  function filterView(number, key) {
    const place = DATA.filters.findIndex((each) => each[0] === key), [, label, about] = DATA.filters[place];
    const found = [];
    for (const step of DATA.runs[number].steps) for (const group of step.groups) for (const each of group[5]) if (each[1] & (1 << place)) found.push([step, group, each]);
    if (key === "longest") found.sort((a, b) => b[2][2] - a[2][2]);
    return [el("h2", { tabindex: "-1" }, `${label[0].toUpperCase()}${label.slice(1)}: ${found.length} rollouts`), el("p", { class: "note" }, about),
      found.length > LISTED ? el("p", null, `The first ${LISTED} of ${found.length} are listed.`) : null,
      table(label, ["rollout", "length", "reward", "advantage", "in this page"], found.slice(0, LISTED).map(([step, group, each]) =>
        row([link([number, step.n, group[0], each[0]], `update ${step.n}, group ${group[0]}, rollout ${each[0]}`), each[2], plain(each[3]), number_(each[4]), step.here ? "yes" : "no"])))];
  }
  const number_ = (value) => number(value);
  const verdict = (correct) => el("span", { class: `verdict v${correct}` }, (correct === null ? "? " : correct ? "\u2713 " : "\u2717 ") + DATA.verdicts[correct === null ? 2 : Number(correct)]);
  function groupView(group) {
    const parts = [...new Set(group.rollouts.flatMap((each) => Object.keys(each.parts || {})))];
    const labels = Object.fromEntries(DATA.filters.map(([key, label]) => [key, label]));
    return [el("h2", { tabindex: "-1" }, `Group ${group.n} of update ${group.place[1]}`),
      pairs([["task", group.task ?? "-"], ["difficulty", group.difficulty ?? "-"], ["recorded because", group.why ?? "-"],
        ["right answer", answer(group.gold)], ...(group.dropped ? [["dropped", DATA.dropped[group.reason] ?? group.reason]] : [])]),
      group.flat ? el("p", { class: "flat" }, DATA.flat) : null,
      group.puzzle && group.puzzle.length ? [el("h3", null, "The puzzle, with who is what"), el("ul", null, group.puzzle.map((line) => el("li", null, line)))] : null,
      group.math ? [el("h3", null, "The problem"), el("p", { class: "math problem" }, rendered(group.math))] : null,
      table("Rollouts: the best, the worst, then by falling reward",
        ["rollout", "verdict", "reward", ...(parts.length > 1 ? parts : []), "advantage", "length", "stop", "answer", "gold", "notable"],
        group.rollouts.map((each) => row([link([...group.place, each.i], `rollout ${each.i}`), verdict(each.correct), plain(each.reward),
          ...(parts.length > 1 ? parts.map((name) => plain((each.parts || {})[name])) : []), number(each.advantage), each.length, DATA.stops[each.stop] ?? each.stop,
          [answer(each.extracted), people(each)], answer(group.gold), each.marks.map((mark) => labels[mark]).join(", ")]))),
      el("h3", null, "Prompt"), el("div", { class: "tokens" }, [...group.tokens].map((token) => el("span", { class: tokenClass(token, "prompt") }, pieces(DATA.words[token][2]))))];
  }
  function people(rollout) {
    if (!rollout.people) return null;
    return el("ul", { class: "people" }, rollout.people.map(([name, said, truth]) =>
      el("li", { class: said === truth ? "fits" : "wrong" }, `${said === truth ? "\u2713" : "\u2717"} ${name}: ${said ?? "no role"}${said === truth ? "" : `, in truth ${truth}`}`)));
  }

  // --- a rollout and its tokens

  const tokenClass = (token, more) => ["tok", more, DATA.words[token][1] ? "special" : ""].filter(Boolean).join(" ");
  function rolloutView(group, rollout) {
    const place = [...group.place, rollout.i], order = group.rollouts.map((each) => each.i), at = order.indexOf(rollout.i);
    view = { group, rollout, place, token: -1, nodes: [], panel: el("div", { id: "panel", role: "region", "aria-live": "polite", "aria-label": "The chosen token" }), legend: el("div", { id: "legend" }),
      previous: order[at - 1], next: order[at + 1] };
    const radios = DATA.channels.map((each, i) => {
      const input = el("input", { type: "radio", name: "channel", value: each.key, id: `ch-${each.key}` });
      input.checked = each.key === channel;
      input.addEventListener("change", () => { channel = each.key; paint(); });
      return el("label", { for: `ch-${each.key}`, title: each.about }, input, ` ${each.label}`, el("kbd", { "aria-hidden": "true" }, String(i + 1)));
    });
    view.nodes = [...rollout.tokens].map((token, i) => {
      const flag = rollout.flags[i];
      const node = el("a", { href: `#/${[...place, i].join("/")}`, tabindex: "-1", class: tokenClass(token, [flag & FLAG.mask || !rollout.arrays.logps ? "" : "masked", flag & (FLAG.low | FLAG.high) ? "clipped" : "", flag & FLAG.clamped ? "clamped" : ""].join(" ")) }, pieces(DATA.words[token][2]));
      node.addEventListener("pointerenter", () => show(i));
      node.addEventListener("focus", () => show(i));
      return node;
    });
    if (view.nodes.length) view.nodes[0].tabIndex = 0;
    const body = el("div", { class: "tokens", id: "tokens" }, el("span", { class: "sr" }, "Prompt: "), [...group.tokens].map((token) => el("span", { class: tokenClass(token, "prompt") }, pieces(DATA.words[token][2]))),
      el("span", { class: "sr" }, "Response: "), view.nodes);
    body.addEventListener("pointerleave", () => show(view.token));
    return [el("h2", { tabindex: "-1" }, `Rollout ${rollout.i}: `, verdict(rollout.correct)),
      pairs([["reward", plain(rollout.reward)], ["advantage", number(rollout.advantage)], ["length", `${rollout.length} tokens, ${DATA.stops[rollout.stop] ?? rollout.stop}`],
        ["teacher minus student, mean", `${number(rollout.likes)} nats`], ["answer", answer(rollout.extracted)], ["gold", answer(group.gold)], ["scorer", rollout.explanation ?? "-"]]),
      rollout.people ? [el("h3", null, "Who is called what"), people(rollout)] : null,
      rollout.assumed && rollout.assumed.length ? table("Assignments that the response tries", ["assumed", "in truth", "wrong in its check"], rollout.assumed.map((each) => row(each))) : null,
      rollout.arrays.logps ? null : el("p", { class: "warning" }, DATA.untrained),
      el("fieldset", { class: "channels" }, el("legend", null, "Colour"), radios), view.legend,
      el("div", { class: "reading" }, body, view.panel),
      el("p", { class: "note" }, el("span", { class: "tok clipped" }, "underlined"), ": the clip stops the token. ", el("span", { class: "tok clamped" }, "dotted"), ": outside of the teacher's clamp. ",
        el("span", { class: "tok prompt" }, "grey"), ": prompt, or masked. ", el("span", { class: "tok special" }, "boxed"), ": a special token."),
      el("details", null, el("summary", null, "Keys"), pairs([["\u2190 \u2192, Home, End", "the token before, the one after, the first, the last"], ["n, p", "the next, the previous clipped or clamped token"],
        ["j, k", "the next, the previous rollout of the group"], ["u", "up: to the group, the update, the run"], [`1 to ${DATA.channels.length}`, "the colour"]])),
      el("nav", { class: "turn", "aria-label": "Other rollouts" }, view.previous === undefined ? null : link([...group.place, view.previous], `\u2190 rollout ${view.previous}`), view.next === undefined ? null : link([...group.place, view.next], `rollout ${view.next} \u2192`))];
  }
  function paint() {
    const { group, rollout, nodes, legend } = view, about = DATA.channels.find((each) => each.key === channel);
    let most = 0;
    for (const each of group.rollouts) for (let i = 0; i < each.length; i++) {
      const size = Math.abs(value(each, channel, i));
      if (size > most && Number.isFinite(size)) most = size;
    }
    nodes.forEach((node, i) => { node.style.backgroundColor = colour(value(rollout, channel, i), most); });
    const signed = channel !== "entropy";
    const swatches = (signed ? [-1, -0.25, 0, 0.25, 1] : [0, 0.25, 1]).map((part) => {
      const node = el("span", { class: "swatch" }, number(part * most));
      node.style.backgroundColor = colour(part * most, most);
      return node;
    });
    legend.replaceChildren(el("span", null, `${about.label}, ${about.unit}: `), ...(most ? swatches : [rollout.arrays.logps ? "0, or no value, at every token of the group" : "no value"]),
      el("span", { class: "note" }, ` ${about.about}. ${most ? "The colour grows with the square root, up to the largest value in the group." : ""}`));
    for (const input of document.querySelectorAll("input[name=channel]")) input.checked = input.value === channel;
  }
  function colour(value, most) {
    if (!most || Number.isNaN(value) || value === 0) return "transparent";
    const alpha = (0.75 * Math.sqrt(Math.min(1, Math.abs(value) / most))).toFixed(3);
    return value > 0 ? `rgba(235, 120, 0, ${alpha})` : `rgba(40, 110, 230, ${alpha})`;
  }
  function show(i) {
    if (i < 0 || !view) { if (view) view.panel.replaceChildren(el("p", { class: "note" }, "Point at a token, or move with the arrow keys, to see its numbers in the equation.")); return; }
    const { rollout, group, panel } = view, at = (key) => value(rollout, key, i), flag = rollout.flags[i], word = DATA.words[rollout.tokens[i]];
    const A = at("advantage"), r = Math.exp(Math.min(20, at("log_ratio"))), [low, high] = group.bounds || [NaN, NaN];
    const branch = !rollout.arrays.logps ? DATA.untrained : !(flag & FLAG.mask) ? DATA.masked : flag & FLAG.low ? DATA.branches.low : flag & FLAG.high ? DATA.branches.high : A === 0 ? DATA.branches.flat : DATA.branches.ratio;
    const shown = { token: [el("span", { class: "tok" }, pieces(word[2])), ` (number ${word[0]}, place ${i})`], A: number(A), S: number(at("logps")), old: number(at("old_logps")), T: number(at("teacher_logps")), ref: number(at("ref_logps")),
      anchor: number(at("anchor")), log_ratio: number(at("log_ratio")), r: plain(r), bounds: `${plain(low)} to ${plain(high)}`, branch, clamped: DATA.clamp[flag & FLAG.clamped ? 1 : 0], entropy: plain(at("entropy")),
      contribution: number(at("contribution")), grpo: number(at("grpo")), changed: number(at("changed")) };
    if (!rollout.arrays.ref_logps) delete shown.ref;
    const held = Math.min(Math.max(r, low), high);
    const lines = rollout.arrays.logps && flag & FLAG.mask ? `min(r A, clip(r) A) = min(${number(r * A)}, ${number(held * A)}) = ${number(Math.min(r * A, held * A))}` : null;
    panel.replaceChildren(...[lines && el("p", { class: "equation" }, lines), pairs(DATA.token.filter(([key]) => key in shown).map(([key, label]) => [label, shown[key]]))].filter(Boolean));
  }
  function choose(i, focus) {
    if (!view || !view.nodes[i]) return;
    for (const node of view.nodes) if (node.tabIndex === 0 || node.hasAttribute("aria-current")) { node.tabIndex = -1; node.removeAttribute("aria-current"); }
    view.token = i;
    view.nodes[i].tabIndex = 0;
    view.nodes[i].setAttribute("aria-current", "true");
    if (focus) view.nodes[i].focus();
    else view.nodes[i].scrollIntoView({ block: "nearest" });
    show(i);
  }

  // --- where one is: #/run/update/group/rollout/token, #/run/filter/name

  function crumbs(place) {
    const names = [["runs", []]], [run, step, group, rollout, token] = place;
    if (run !== undefined && DATA.runs[run]) names.push([DATA.runs[run].name, [run]]);
    if (step === "filter") names.push(["filter", place]);
    else ["update", "group", "rollout", "token"].forEach((what, i) => { if (place[i + 1] !== undefined) names.push([`${what} ${place[i + 1]}`, place.slice(0, i + 2)]); });
    document.getElementById("crumbs").replaceChildren(el("ol", null, names.map(([name, to], i) => el("li", null, i === names.length - 1 ? el("span", { "aria-current": "page" }, name) : link(to, name)))));
  }
  function parsed() {
    const parts = location.hash.replace(/^#\/?/, "").split("/").filter(Boolean);
    return parts[1] === "filter" ? [Number(parts[0]), "filter", parts[2]] : parts.slice(0, 5).map(Number);
  }
  let turn = 0;
  async function go(first) {
    const place = parsed(), [run, step, group, rollout, token] = place, mine = ++turn;
    if (view && place.length >= 4 && view.place.join() === place.slice(0, 4).join()) {
      crumbs(place);
      if (token !== undefined) choose(token, true);
      return;
    }
    const unknown = (what) => [el("h2", { tabindex: "-1" }, "Not here"), el("p", null, `This page has no ${what} like that.`)];
    let content;
    if (run !== undefined && !DATA.runs[run]) content = unknown("run");
    else if (run === undefined) content = home();
    else if (step === undefined) content = runView(run);
    else if (step === "filter") content = DATA.filters.some((each) => each[0] === group) ? filterView(run, group) : unknown("filter");
    else {
      let pack;
      try { pack = await unpack(run, step); } catch (error) {
        content = [el("h2", { tabindex: "-1" }, "This cannot be opened"), el("p", null, "The records of an update need a browser with DecompressionStream (2023 or later): " + error)];
      }
      if (mine !== turn) return;
      const found = pack && pack.groups.find((each) => each.n === group);
      const one = found && found.rollouts.find((each) => each.i === rollout);
      if (!content) content = group === undefined || !pack ? stepView(run, step, pack) : !found ? unknown("group") : rollout === undefined ? groupView(found) : !one ? unknown("rollout") : null;
      if (!content) { view = null; MAIN.replaceChildren(...rolloutView(found, one).flat(9).filter(Boolean)); crumbs(place); paint(); show(-1); if (token !== undefined) choose(token, !first); else if (!first) heading(); return; }
    }
    view = null;
    MAIN.replaceChildren(...content.flat(9).filter(Boolean));
    crumbs(place);
    if (!first) heading();
  }
  function heading() {
    const node = MAIN.querySelector("h2");
    if (node) node.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const place = parsed(), typing = event.target.matches("input, select, textarea"), to = (where) => { location.hash = "#/" + where.join("/"); event.preventDefault(); };
    if (event.key === "u" && place.length) return to(place[1] === "filter" ? [place[0]] : place.slice(0, -1));
    if (!view) return;
    const last = view.nodes.length - 1, at = view.token, notable = (i) => view.rollout.flags[i] & (FLAG.low | FLAG.high | FLAG.clamped);
    // Chosen at once, not when the address has changed: a key that repeats must not count from the token before.
    const step = (i) => { if (i >= 0 && i <= last) { choose(i, true); location.replace("#/" + [...view.place, i].join("/")); event.preventDefault(); } };
    const seek = (from, by) => { let i = from; while (i >= 0 && i <= last && !notable(i)) i += by; step(i); };
    if (/^[1-9]$/.test(event.key) && DATA.channels[event.key - 1]) { channel = DATA.channels[event.key - 1].key; paint(); }
    else if (event.key === "j" && view.next !== undefined) to([...view.group.place, view.next]);
    else if (event.key === "k" && view.previous !== undefined) to([...view.group.place, view.previous]);
    else if (event.key === "n") seek(at + 1, 1);
    else if (event.key === "p") seek(at - 1, -1);
    else if (typing) return;
    else if (event.key === "ArrowRight") step(at + 1);
    else if (event.key === "ArrowLeft") step(Math.max(0, at - 1));
    else if (event.key === "Home") step(0);
    else if (event.key === "End") step(last);
  });
  window.addEventListener("hashchange", () => go(false));
  document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); MAIN.focus(); });
  document.getElementById("foot").append(`Made by rlad ${DATA.version} at ${DATA.made}. This file fetches nothing.`);
  go(true);
})();
