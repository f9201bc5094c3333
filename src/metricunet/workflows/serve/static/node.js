"use strict";

// The buttons of the queue: each posts to its address, and then the page is shown anew. A page comes with all of them
// disabled, so that none can be pressed before somebody hears it.
for (const button of document.querySelectorAll("button[data-post]")) {
  button.addEventListener("click", async () => {
    const said = document.getElementById("said");
    button.disabled = true;
    try {
      const answer = await fetch(button.dataset.post, { method: "POST" });
      if (answer.ok) {
        location.reload();
        return;
      }
      const text = await answer.text();
      said.textContent = text.startsWith("{") ? JSON.parse(text).error : text;
    } catch {
      said.textContent = "The node does not answer.";
    }
    button.disabled = false;
  });
  button.disabled = false;
}
