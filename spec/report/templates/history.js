"use strict";
(() => {
  const WORDS = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const $ = (id) => document.getElementById(id);
  const state = { lang: "", theme: "" };
  const zh = () => state.lang === "zh";

  // the address: "#lang=zh&theme=dark", as on the page of a report
  const read = () => {
    for (const name of Object.keys(state)) state[name] = new URLSearchParams(location.hash.slice(1)).get(name) ?? "";
  };
  const write = () => {
    const parts = Object.entries(state).filter(([, value]) => value);
    history.replaceState(null, "", `#${new URLSearchParams(parts)}`);
  };
  const say = (text) => (zh() && Object.hasOwn(WORDS, text) ? WORDS[text] : text);
  const show = () => {
    root.lang = zh() ? "zh-CN" : "en";
    root.dataset.theme = ["light", "dark"].includes(state.theme) ? state.theme : "auto";
    $("language").textContent = zh() ? "English" : "中文";
    $("language").lang = zh() ? "en" : "zh-CN";
    document.title = `Ocean Spec: ${say("history")}`;
    for (const element of document.querySelectorAll(".w")) {
      element.dataset.en ??= element.textContent;
      element.textContent = say(element.dataset.en);
    }
  };
  $("language").addEventListener("click", () => { state.lang = zh() ? "" : "zh"; write(); show(); });
  $("theme").addEventListener("click", () => {
    state.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
    write();
    show();
  });
  window.addEventListener("hashchange", () => { read(); show(); });
  read();
  if (!location.hash && navigator.language.startsWith("zh")) state.lang = "zh";
  show();
})();
