"use strict";
(async () => {
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const packed = Uint8Array.from(atob($("data").textContent), (char) => char.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const DATA = JSON.parse(await new Response(unpacked).text());
  $("articles").innerHTML = DATA.articles;
  $("needs").remove();
  const FILTERS = ["chapter", "kind", "verdict", "impl", "outcome", "level", "aspect"];
  const state = { anchor: "", q: "", rows: "chapter", lang: "", theme: "" };
  for (const name of FILTERS) state[name] = "";

  // the data: the page names what its JSON numbers
  const articles = new Map([...document.querySelectorAll("article")].map((a) => [a.id, a]));
  DATA.functions = DATA.functions.map(([file, name, line, level, aspect, columns, details = [], measured = [], checks = []]) => [
    file, name, line, DATA.levels[level], DATA.aspects[aspect],
    columns.map(([c, seconds, ...pairs]) => {
      const counts = {};
      for (let i = 0; i < pairs.length; i += 2) counts[DATA.outcomes[pairs[i]]] = pairs[i + 1];
      return [c, counts, seconds];
    }),
    details, measured, checks,
  ]);
  DATA.clauses = Object.fromEntries([...articles.keys()].map((id, i) => {
    const [kind, verdict, ...tests] = DATA.clauses[i];
    return [id, [kind, verdict, tests]];
  }));

  // words: the page holds English; Chinese comes from a table
  const zh = () => root.lang === "zh-CN";
  const say = (text) => (zh() && Object.hasOwn(DATA.words, text) ? DATA.words[text] : text);
  const word = (element) => {
    element.dataset.en ??= element.textContent;
    element.textContent = say(element.dataset.en);
  };
  const column = (number) => DATA.columns[number][zh() ? 1 : 0];

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const kind = (outcome) => outcome.replaceAll(" ", "-");
  const count = (outcome, number) => make("span", { class: `n ${kind(outcome)}` }, `${say(outcome)} ${number.toLocaleString("en")} `);

  // the address: "#08.conv2d.stride1&q=stride&lang=zh"
  const read = () => {
    const parts = location.hash.slice(1).split("&").map((part) => {
      try { return decodeURIComponent(part.replaceAll("+", " ")); } catch { return part; }
    });
    for (const name of Object.keys(state)) state[name] = name === "rows" ? "chapter" : "";
    for (const part of parts) {
      const at = part.indexOf("=");
      const name = part.slice(0, at);
      if (at < 0) state.anchor ||= part;
      else if (name !== "anchor" && Object.hasOwn(state, name)) state[name] = part.slice(at + 1);
    }
  };
  const write = () => {
    const parts = state.anchor ? [encodeURIComponent(state.anchor)] : [];
    for (const name of Object.keys(state)) {
      if (name !== "anchor" && state[name] && !(name === "rows" && state.rows === "chapter")) {
        parts.push(`${name}=${encodeURIComponent(state[name])}`);
      }
    }
    history.replaceState(null, "", `#${parts.join("&")}`);
  };

  // filters
  const texts = new Map();
  const text = (id) => {
    if (!texts.has(id)) {
      const tests = DATA.clauses[id][2].map((f) => DATA.functions[f][1]).join(" ");
      const own = [...articles.get(id).querySelectorAll("h3, p")].map((part) => part.textContent).join(" ");
      texts.set(id, `${own} ${tests}`.toLowerCase());
    }
    return texts.get(id);
  };
  const matches = (id) => {
    const [kindOf, verdict, tests] = DATA.clauses[id];
    if (state.chapter && !id.startsWith(`${state.chapter}.`)) return false;
    if (state.kind && kindOf !== state.kind) return false;
    if (state.verdict && (verdict ?? "none") !== state.verdict) return false;
    if (state.level || state.aspect || state.impl || state.outcome) {
      const found = tests.some((number) => {
        const [, , , level, aspect, columns] = DATA.functions[number];
        if (state.level && (level ?? "none") !== state.level) return false;
        if (state.aspect && (aspect ?? "none") !== state.aspect) return false;
        return columns.some(([c, counts]) =>
          (!state.impl || DATA.columns[c][0] === state.impl) && (!state.outcome || counts[state.outcome]));
      });
      if (!found) return false;
    }
    return state.q.toLowerCase().split(/\s+/).every((part) => text(id).includes(part));
  };
  const filter = () => {
    let shown = 0;
    for (const [id, article] of articles) {
      const visible = matches(id);
      shown += visible;
      article.hidden = !visible && id !== state.anchor;
    }
    for (const chapter of document.querySelectorAll("section.chapter")) {
      chapter.hidden = !chapter.querySelector("article:not([hidden])");
    }
    $("count").textContent = `${shown} ${say("of")} ${articles.size} ${say("clauses shown")}`;
    scores();
  };

  // the table of scores
  const scores = () => {
    const at = { chapter: 1, level: 2, aspect: 3 }[state.rows] ?? 1;
    const rows = new Map();
    const columns = new Set();
    const total = new Map();
    for (const [c, chapter, level, aspect, outcome, number] of DATA.cube) {
      const cell = [c, chapter, level ?? "none", aspect ?? "none"];
      if (state.impl && DATA.columns[c][0] !== state.impl) continue;
      if ((state.chapter && chapter !== state.chapter) || (state.level && cell[2] !== state.level)) continue;
      if ((state.aspect && cell[3] !== state.aspect)) continue;
      columns.add(c);
      if (!rows.has(cell[at])) rows.set(cell[at], new Map());
      for (const counts of [rows.get(cell[at]), total]) {
        if (!counts.has(c)) counts.set(c, {});
        counts.get(c)[outcome] = (counts.get(c)[outcome] ?? 0) + number;
      }
    }
    const order = [...columns].sort((a, b) => a - b);
    const shown = (counts) => {
      if (!counts) return make("td", {}, "–");
      const all = Object.values(counts).reduce((a, b) => a + b, 0);
      const bar = make("div", { class: "bar", "aria-hidden": "true" });
      const others = make("div", { class: "others" });
      const score = `${(counts.passed ?? 0).toLocaleString("en")} / ${all.toLocaleString("en")}`;
      for (const outcome of DATA.outcomes) {
        if (!counts[outcome]) continue;
        const part = make("i", { class: kind(outcome) });
        part.style.width = `${(counts[outcome] / all) * 100}%`;
        bar.append(part);
        if (outcome !== "passed") others.append(count(outcome, counts[outcome]));
      }
      return make("td", {}, score, bar, others);
    };
    const name = (key) => (at !== 1 ? say(key) : `${key} ${DATA.chapters[key]?.[zh() ? 1 : 0] ?? ""}`);
    const line = (key, counts) =>
      make("tr", {}, make("th", { scope: "row" }, key), ...order.map((c) => shown(counts.get(c))));
    $("table").replaceChildren(
      make("thead", {}, make("tr", {}, make("th", { scope: "col" }, say(state.rows)),
        ...order.map((c) => make("th", { scope: "col" }, column(c))))),
      make("tbody", {}, ...[...rows.keys()].sort().map((key) => line(name(key), rows.get(key))), line(say("Total"), total)));
  };

  // the tests of a clause
  const copy = async (button, content) => {
    try {
      await navigator.clipboard.writeText(content);
    } catch {
      const area = make("textarea", {});
      area.value = content;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.textContent = say("Copied");
    setTimeout(() => { button.textContent = say("Copy"); }, 1500);
  };
  const test = (number) => {
    const [file, name, line, level, aspect, columns, details, measured, checks] = DATA.functions[number];
    const box = make("div", { class: "test" });
    const facts = [level, aspect].filter(Boolean).map(say).join(", ");
    box.append(make("p", {}, make("code", {}, `${DATA.files[file]}:${line} ${name}`), facts ? ` ${facts}` : ""));
    const list = make("ul", { class: "o" });
    for (const [c, counts, seconds] of columns) {
      const item = make("li", { class: kind(worst(counts)) }, `${column(c)} `);
      for (const outcome of DATA.outcomes) if (counts[outcome]) item.append(count(outcome, counts[outcome]));
      item.append(make("span", { class: "n" }, `· ${seconds.toFixed(2)} s`));
      list.append(item);
    }
    box.append(list);
    if (measured.length) {
      const some = measured.some((row) => row[1]);
      const names = ["implementation", ...(some ? ["parameters"] : []), "compared", "documented", "measured"];
      const head = names.map((name) => make("th", { scope: "col" }, say(name)));
      const body = measured.map(([c, parameters, what, documented, value]) =>
        make("tr", {}, make("td", {}, column(c)), ...(some ? [make("td", {}, parameters)] : []), make("td", {}, what),
          make("td", {}, make("code", {}, documented)), make("td", {}, make("code", {}, value))));
      box.append(make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": say("measured") },
        make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body))));
    }
    if (checks.length) box.append(make("p", {}, say("Asserted:")), make("pre", {}, checks.join("\n")));
    for (const [c, outcome, parameters, more, message, diagnosis, reproduction] of details) {
      const failed = outcome === "failed" || outcome === "error";
      box.append(make("p", {}, make("strong", {}, column(c)), " ", count(outcome, failed ? "" : more + 1),
        failed && parameters ? make("code", {}, `[${parameters}]`) : ""));
      if (message) box.append(failed ? make("pre", { tabindex: "0" }, message) : make("p", {}, message));
      if (diagnosis) box.append(make("p", {}, `${say("Diagnosis")}: ${diagnosis}`));
      if (reproduction) {
        const button = make("button", { type: "button" }, say("Copy"));
        button.addEventListener("click", () => copy(button, reproduction));
        box.append(make("p", {}, say("To reproduce, paste into Python:"), " ", button), make("pre", { tabindex: "0" }, reproduction));
      }
      if (failed && more) box.append(make("p", {}, `${say("and more of the same, in report.json:")} ${more}`));
    }
    return box;
  };
  const open = (details) => {
    const tests = DATA.clauses[details.dataset.clause][2];
    details.replaceChildren(details.querySelector("summary"), ...tests.map(test));
  };

  // the outcomes of a clause: a line for each implementation, which has the worst outcome of its tests
  const worst = (counts) =>
    ["failed", "error", "known failure", "passed"].find((outcome) => counts[outcome]) ?? Object.keys(counts)[0];
  const outcomes = (id) => {
    const found = new Map();
    for (const number of DATA.clauses[id][2]) {
      for (const [c, counts] of DATA.functions[number][5]) {
        if (!found.has(c)) found.set(c, {});
        for (const [outcome, n] of Object.entries(counts)) found.get(c)[outcome] = (found.get(c)[outcome] ?? 0) + n;
      }
    }
    return make("ul", { class: "o" }, ...[...found].sort((a, b) => a[0] - b[0]).map(([c, counts]) =>
      make("li", { class: kind(worst(counts)) }, `${column(c)} `,
        ...DATA.outcomes.filter((outcome) => counts[outcome]).map((outcome) => count(outcome, counts[outcome])))));
  };
  for (const [id, article] of articles) {
    article.append(make("ul", { class: "o" }), make("details", { "data-clause": id },
      make("summary", {}, make("span", { class: "w" }, "Tests"))));
  }

  const translate = () => {
    root.lang = state.lang === "zh" ? "zh-CN" : "en";
    root.dataset.theme = ["light", "dark"].includes(state.theme) ? state.theme : "auto";
    $("language").textContent = zh() ? "English" : "中文";
    $("language").lang = zh() ? "en" : "zh-CN";
    document.querySelectorAll(".w").forEach(word);
    document.title = `Ocean Spec: ${say("report")}`;
    $("contents").setAttribute("aria-label", say("Contents"));
    for (const link of document.querySelectorAll(".chapters a")) link.title = DATA.chapters[link.textContent][zh() ? 1 : 0];
    for (const [id, article] of articles) article.querySelector(":scope > ul.o").replaceWith(outcomes(id));
    document.querySelectorAll("details[open][data-clause]").forEach(open);
    document.querySelectorAll(".fill").forEach((box) => box.replaceChildren(test(Number(box.dataset.function))));
    for (const option of $("f-chapter").options) {
      if (option.value) option.textContent = `${option.value} ${DATA.chapters[option.value][zh() ? 1 : 0]}`;
    }
    for (const option of $("f-impl").options) {
      if (option.value) option.textContent = DATA.columns.find((pair) => pair[0] === option.value)[zh() ? 1 : 0];
    }
  };
  const show = () => {
    translate();
    $("q").value = state.q;
    $("rows").value = state.rows;
    for (const name of FILTERS) $(`f-${name}`).value = state[name];
    filter();
    document.querySelector(".target")?.classList.remove("target");
    const target = state.anchor && $(state.anchor);
    if (target) {
      target.classList.add("target");
      const details = target.matches("article") && target.querySelector("details");
      if (details) details.open = true;
      if (state.anchor === "errata") $("errata-list").open = true;
      target.scrollIntoView();
    }
  };

  // what can be chosen
  const levels = ["tutorial", "definition", "pytorch"];
  const unique = (values) => [...new Set(values)];
  const choices = {
    chapter: unique(Object.keys(DATA.clauses).map((id) => id.slice(0, 2))),
    kind: unique(Object.values(DATA.clauses).map((c) => c[0])),
    verdict: unique(Object.values(DATA.clauses).map((c) => c[1] ?? "none")),
    impl: DATA.columns.map((pair) => pair[0]),
    outcome: DATA.outcomes.filter((o) => DATA.cube.some((entry) => entry[4] === o)),
    level: unique(DATA.cube.map((entry) => entry[2] ?? "none")).sort((a, b) => levels.indexOf(a) - levels.indexOf(b)),
    aspect: unique(DATA.cube.map((entry) => entry[3] ?? "none")).sort(),
  };
  for (const name of FILTERS) {
    const select = $(`f-${name}`);
    for (const value of choices[name]) {
      select.append(make("option", { value, ...(["chapter", "impl"].includes(name) ? {} : { class: "w" }) }, value));
    }
    select.addEventListener("change", () => { state[name] = select.value; state.anchor = ""; write(); filter(); });
  }
  let waiting = 0;
  $("q").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { state.q = $("q").value.trim(); state.anchor = ""; write(); filter(); }, 120);
  });
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("filters").addEventListener("reset", (event) => {
    event.preventDefault();
    for (const name of ["q", "anchor", ...FILTERS]) state[name] = "";
    write();
    show();
  });
  $("rows").addEventListener("change", () => { state.rows = $("rows").value; write(); scores(); });
  $("language").addEventListener("click", () => { state.lang = zh() ? "" : "zh"; write(); translate(); filter(); });
  $("theme").addEventListener("click", () => {
    const dark = getComputedStyle(root).colorScheme === "dark";
    state.theme = dark ? "light" : "dark";
    write();
    translate();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    state.anchor = link.getAttribute("href").slice(1);
    history.pushState(null, "", location.href);
    write();
    show();
    const target = $(state.anchor);
    if (target) { target.tabIndex = -1; target.focus({ preventScroll: true }); }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.matches("input, select, textarea")) { event.preventDefault(); $("q").focus(); }
  });
  document.addEventListener("toggle", (event) => {
    if (event.target.dataset?.clause && event.target.open) open(event.target);
  }, true);
  window.addEventListener("beforeprint", () => { $("errata-list").open = true; });
  window.addEventListener("popstate", () => { read(); show(); });
  read();
  if (!state.lang && !location.hash && navigator.language.startsWith("zh")) state.lang = "zh";
  show();
  root.dataset.ready = "";
})();
