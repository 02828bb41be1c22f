"use strict";
const form = document.getElementById("try");
for (const line of document.querySelectorAll("#routes pre")) {
  line.textContent = line.textContent.replace(/http:\/\/localhost:\d+/, location.origin);
}

/* The server writes the figures; the page is asked for again and they are taken from it. */
async function renew() {
  if (document.hidden) return;
  const answer = await fetch(location.pathname, { cache: "no-store" });
  const next = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (next.body.dataset.state !== document.body.dataset.state) return location.reload();
  const [old, fresh] = [document, next].map((page) => page.getElementById("figures"));
  if (old && fresh) old.replaceChildren(...fresh.children);
}
setInterval(() => renew().catch(() => {}), 2000);

async function predict(event) {
  event.preventDefault();
  const shown = document.getElementById("answer");
  try {
    const answer = await fetch(form.dataset.route, {
      method: "POST",
      headers: { "content-type": "application/json", "x-hloserve-evidence": "1" },
      body: document.getElementById("body").value,
    });
    const metadata = [...answer.headers].filter(([name]) => name.startsWith("x-hloserve-"));
    const lines = metadata.map(([name, value]) => `${name}: ${value}`);
    shown.textContent = [`${answer.status} ${answer.statusText}`, ...lines, "", await answer.text()].join("\n");
  } catch (error) {
    shown.textContent = String(error);
  }
  shown.hidden = false;
}
if (form) {
  form.hidden = false;
  form.addEventListener("submit", predict);
}
