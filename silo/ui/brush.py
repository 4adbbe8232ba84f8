"""The painter's brush: its width, beside the canvas, and a canvas that fits the photo."""

LEAST, WIDEST, STEP = 0.5, 20, 0.5  # percent of the photo's shorter side
USUAL = 2  # of a scratch
ID = "brush"
HTML = f"""
<p>Paint white what is to be filled in, black what stays.</p>
<label>Brush width <input type="range" min="{LEAST}" max="{WIDEST}" step="{STEP}" value="{USUAL}">
<output>{USUAL}%</output></label>
"""
# gradio's own size is in pixels and hidden behind an icon, the last on the right of its tools.
CSS = f"""
#{ID} .html-container {{ padding: 0; }}
#{ID} p {{ margin: 0 0 .25rem; }}
#{ID} label {{ display: flex; flex-wrap: wrap; align-items: center; gap: .25rem .75rem; }}
#{ID} input {{ flex: 1; min-width: 6rem; accent-color: var(--color-accent); }}
#{ID} output {{ min-width: 3.5em; text-align: right; }}
#canvas .toolbar-wrap .half-container.right > button:last-of-type {{ display: none; }}
#canvas .toolbar-wrap .half-container.right:not(:has(> button + button)) {{ display: none; }}
"""
# Runs once, when the component is mounted; `element` is its root. gradio (6.31) puts its editor at
# `window.editor`, and its `reset` comes after each photo, before a layer is put on it: in the
# middle of all the editor holds. Textures of the brush are among that, as large as the largest
# canvas so far, and a layer on a smaller photo would lie beside its place. Of two values that come
# at once, the layers of both would stay.
SCRIPT = """
const width = () => element.querySelector('input');
const size = (editor) => {
  const brush = editor.tools.get('brush');
  const radius = (width().value / 200) * Math.min(editor.width, editor.height);
  brush.set_brush_size(radius);
  brush.set_eraser_size(radius);
};
const fit = (editor) => {
  const reset = editor.reset.bind(editor);
  editor.reset = () => {
    editor.tools.get('brush').brush_textures?.cleanup_textures();  // `reset` makes them anew
    reset();
    size(editor);
  };
  const add = editor.add_layers_from_url.bind(editor);
  let added = Promise.resolve();
  editor.add_layers_from_url = (urls) => (added = added.catch(() => {}).then(() => add(urls)));
};
let editor;
const take = (mounted) => {
  editor = mounted;
  mounted?.ready?.then(() => fit(mounted));
};
take(window.editor);
Object.defineProperty(window, 'editor', { configurable: true, get: () => editor, set: take });
element.addEventListener('input', () => {
  element.querySelector('output').textContent = `${width().value}%`;
  if (editor?.layer_manager) {
    size(editor);
    editor.tools.get('brush').preview_brush(true);
    editor.wake_render_loop();
  }
});
element.addEventListener('change', () => {
  editor?.tools.get('brush').preview_brush(false);
  editor?.wake_render_loop();
});
"""
