// Shows a token's values beside it: on pointing, on keyboard focus, on a tap.
(() => {
  const box = document.getElementById("hint");
  const show = (token) => {
    box.replaceChildren(...token.dataset.hint.split(" | ").map((line) => {
      const row = document.createElement("div");
      row.textContent = line;
      return row;
    }));
    box.hidden = false;
    const at = token.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - box.offsetWidth - 8);
    box.style.left = `${Math.max(8, left) + window.scrollX}px`;
    box.style.top = `${at.bottom + window.scrollY + 4}px`;
  };
  for (const token of document.querySelectorAll("[data-hint]")) {
    token.tabIndex = 0;
    token.setAttribute("aria-describedby", "hint");
    for (const name of ["mouseenter", "focus", "click"]) token.addEventListener(name, () => show(token));
    for (const name of ["mouseleave", "blur"]) token.addEventListener(name, () => { box.hidden = true; });
  }
})();
