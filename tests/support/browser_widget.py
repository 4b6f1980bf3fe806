"""Show an anywidget in a page without Jupyter, connected to the real widget in Python."""

import base64
from typing import Any

PAGE = """<!doctype html><meta charset="utf-8"><style>{css}</style><body><div id="widget"></div>
<script type="module">
const state = {{}}, listeners = {{}};
function received(value) {{
  if (Array.isArray(value)) return value.map(received);
  if (value === null || typeof value !== "object") return value;
  if ("__bytes__" in value) {{
    const bytes = Uint8Array.from(atob(value.__bytes__), (letter) => letter.charCodeAt(0));
    return new DataView(bytes.buffer);
  }}
  return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, received(inner)]));
}}
const model = {{
  get: (name) => state[name],
  set: (name, value) => {{ state[name] = value; model.changed = {{ ...model.changed, [name]: value }}; }},
  save_changes: () => {{ const changed = model.changed; model.changed = {{}}; return toPython(changed).then(take); }},
  on: (event, listener) => (listeners[event] ??= new Set()).add(listener),
  off: (event, listener) => listeners[event].delete(listener),
}};
function take(update) {{
  const news = received(update);
  Object.assign(state, news);
  for (const name of Object.keys(news)) for (const listener of listeners["change:" + name] ?? []) listener();
}}
const source = URL.createObjectURL(new Blob([{esm}], {{ type: "text/javascript" }}));
const widget = (await import(source)).default;
take(await toPython({{}}));
window.cleanUp = widget.render({{ model, el: document.getElementById("widget") }});
window.refresh = async () => {{
  take(await toPython({{}}));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
}};
window.listening = () => Object.values(listeners).reduce((sum, set) => sum + set.size, 0);
</script>"""


def sent(value: Any) -> Any:
    """Convert the value of a trait to JSON, with bytes in base64."""
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {key: sent(inner) for key, inner in value.items()}
    return [sent(inner) for inner in value] if isinstance(value, list | tuple) else value


def open_widget(page: Any, widget: Any) -> None:
    """Show a widget on a Playwright page, and synchronize its state in both directions."""
    import json

    names = [name for name in widget.keys if not name.startswith("_") and name not in ("layout", "tabbable", "tooltip")]

    def to_python(changed: dict[str, Any]) -> Any:
        for name, value in changed.items():
            setattr(widget, name, value)
        return sent({name: getattr(widget, name) for name in names})

    page.expose_function("toPython", to_python)
    page.set_content(PAGE.format(css=str(widget._css), esm=json.dumps(str(widget._esm)).replace("</", "<\\/")))
    page.wait_for_function("window.listening")
