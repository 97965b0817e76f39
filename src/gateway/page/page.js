// Keeps the status page fresh: fetches the page again and changes only what differs, so that nothing flickers and
// focus, selection and open details stay. Rests while nobody looks.
"use strict";
(() => {
  const PERIOD = 5000;
  const PATIENCE = 4000;
  const main = document.querySelector("main[data-live]");
  const away = document.getElementById("away");
  const pause = document.getElementById("pause");
  if (!main) return;
  let timer;
  let since = null;
  let paused = false;

  const say = (text) => {
    if (away.textContent !== text) away.textContent = text;
    document.body.classList.toggle("stale", text !== "" && !paused);
  };

  const isKept = (node, name) => name === "open" && node.nodeName === "DETAILS";

  const morph = (old, fresh) => {
    if (old.isEqualNode(fresh) || "keep" in old.dataset) return;
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && !isKept(old, name)) old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value && !isKept(old, name)) old.setAttribute(name, value);
    }
    const before = [...old.childNodes];
    const after = [...fresh.childNodes];
    after.forEach((next, place) => {
      const node = before[place];
      if (!node) old.append(next);
      else if (node.nodeName !== next.nodeName) node.replaceWith(next);
      else if (node.nodeType === Node.ELEMENT_NODE) morph(node, next);
      else if (node.data !== next.data) node.data = next.data;
    });
    before.slice(after.length).forEach((node) => node.remove());
  };

  const refresh = async () => {
    clearTimeout(timer);
    if (document.hidden || paused) return;
    try {
      const answer = await fetch(location.href, {
        headers: { Accept: "text/html" },
        cache: "no-store",
        signal: AbortSignal.timeout(PATIENCE),
      });
      if (!answer.ok) throw new Error(String(answer.status));
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = next.querySelector("main[data-live]");
      // The login has ended: the reload shows the login page.
      if (!fresh) return location.reload();
      morph(main, fresh);
      ready();
      document.title = next.title;
      since = null;
      say("");
    } catch {
      since ??= new Date();
      say(`No answer since ${since.toLocaleTimeString()}: these figures are old. Trying again.`);
    }
    timer = setTimeout(refresh, PERIOD);
  };

  // Only where the browser lets a page write to the clipboard: over HTTPS, and on this machine.
  const ready = () => {
    for (const button of document.querySelectorAll("button.copy[hidden]")) {
      if (navigator.clipboard) button.hidden = false;
    }
  };
  main.addEventListener("click", async ({ target }) => {
    if (!target.matches("button.copy")) return;
    await navigator.clipboard.writeText(target.parentElement.querySelector("code").textContent);
    target.textContent = "Copied";
    setTimeout(() => (target.textContent = "Copy"), 2000);
  });

  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.textContent = paused ? "Refresh again" : "Stop refreshing";
    say(paused ? "Paused" : "");
    if (!paused) refresh();
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
  ready();
  timer = setTimeout(refresh, PERIOD);
})();
