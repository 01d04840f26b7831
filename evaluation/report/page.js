// What a reader does with the page: explanations, sections that links open, search, files to save.
(() => {
  const box = document.getElementById("hint");
  let shown = null;
  const hide = () => { box.hidden = true; shown = null; };
  const show = (owner, lines, isToken) => {
    box.replaceChildren(...lines.map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      return row;
    }));
    box.classList.toggle("of-token", isToken);
    box.hidden = false;
    shown = owner;
    const at = owner.getClientRects()[0], left = Math.min(at.left, document.documentElement.clientWidth - box.offsetWidth - 8);
    box.style.left = `${Math.max(8, left) + window.scrollX}px`;
    const isLow = at.bottom + box.offsetHeight + 8 > window.innerHeight && at.top > box.offsetHeight + 8;
    box.style.top = `${(isLow ? at.top - box.offsetHeight - 4 : at.bottom + 4) + window.scrollY}px`;
  };
  const explain = (owner, lines, isToken) => {
    const open = () => show(owner, lines(), isToken);
    for (const name of ["mouseenter", "focus"]) owner.addEventListener(name, open);
    owner.addEventListener("click", (event) => { event.preventDefault(); open(); });
    owner.addEventListener("blur", hide);
    // The pointer may go over to the box, to read or copy it.
    owner.addEventListener("mouseleave", () => setTimeout(() => {
      if (shown === owner && document.activeElement !== owner && !box.matches(":hover")) hide();
    }, isToken ? 0 : 150));
  };
  box.addEventListener("mouseleave", () => { if (document.activeElement !== shown) hide(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("click", (event) => { if (shown && !shown.contains(event.target) && !box.contains(event.target)) hide(); });
  for (const token of document.querySelectorAll("[data-hint]")) {
    token.tabIndex = 0;
    token.setAttribute("aria-describedby", "hint");
    explain(token, () => token.dataset.hint.split(" | "), true);
  }
  for (const term of document.querySelectorAll(".term")) {
    const meaning = document.getElementById(term.getAttribute("aria-describedby"));
    explain(term, () => [meaning.textContent], false);
  }

  // A link into a closed section opens it.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let part = target; part; part = part.parentElement?.closest("details")) if (part.matches("details")) part.open = true;
    target.scrollIntoView();
  };
  window.addEventListener("hashchange", reveal);
  for (const link of document.querySelectorAll('a[href^="#"]:not(.term)')) link.addEventListener("click", () => setTimeout(reveal));
  reveal();
  let opened = [];
  window.addEventListener("beforeprint", () => { opened = [...document.querySelectorAll("details:not([open])")]; for (const part of opened) part.open = true; });
  window.addEventListener("afterprint", () => { for (const part of opened) part.open = false; });

  for (const input of document.querySelectorAll("[data-search]")) {
    const place = document.querySelector(input.dataset.search), found = place.querySelector(".found");
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      let hits = 0, kept = 0;
      for (const item of place.querySelectorAll(".searched")) {
        let any = !wanted || item.querySelector(".prompt").textContent.toLowerCase().includes(wanted);
        for (const token of item.querySelectorAll(".token")) {
          const isHit = Boolean(wanted) && token.textContent.toLowerCase().includes(wanted);
          token.classList.toggle("hit", isHit);
          hits += isHit;
          any ||= isHit;
        }
        item.hidden = !any;
        kept += any;
      }
      found.textContent = wanted ? `${hits} ${hits === 1 ? "token" : "tokens"}, ${kept} ${kept === 1 ? "prompt" : "prompts"}` : "";
    });
  }

  // Files come out of the page itself, so a page that was mailed alone still has them.
  for (const link of document.querySelectorAll("a[data-from]")) link.addEventListener("click", () => {
    const held = JSON.parse(document.getElementById(link.dataset.from).textContent);
    const text = typeof held === "string" ? held : JSON.stringify(held, null, 2);
    link.href = URL.createObjectURL(new Blob([text], { type: typeof held === "string" ? "text/csv" : "application/json" }));
  });

  // A table that is wider than its place says so, and the keyboard can scroll it.
  const wide = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const sticksOut = target.scrollWidth > target.clientWidth + 1, note = target.previousElementSibling;
      if (sticksOut && !target.hasAttribute("tabindex")) {
        target.tabIndex = 0;
        const hint = document.createElement("p");
        hint.className = "scroll-note";
        hint.textContent = "This table is wider than the page: scroll it sideways →";
        target.before(hint);
      } else if (!sticksOut && target.hasAttribute("tabindex")) {
        target.removeAttribute("tabindex");
        if (note?.className === "scroll-note") note.remove();
      }
    }
  });
  for (const table of document.querySelectorAll(".scroll")) wide.observe(table);
})();
