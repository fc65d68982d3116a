// Other texts for the model, typed into the served page.
import { useState } from "preact/hooks";
import { Button } from "../parts/controls.jsx";
import { askTexts } from "../server.js";

export function TextsForm({ page, served }) {
  const [texts, setTexts] = useState(() => page.state.texts.map(({ text, source }) => ({ text, source })));
  const [{ busy, trouble }, setProgress] = useState({});
  const reads = texts[0].source !== undefined; // an encoder-decoder: what its encoder reads comes first
  const edit = (index, change) => setTexts(texts.map((old, place) => (place === index ? { ...old, ...change } : old)));
  const submit = async (event) => {
    event.preventDefault();
    if (busy) return;
    setProgress({ busy: true });
    try {
      page.replace(await askTexts(served, texts));
      setProgress({});
    } catch (error) {
      setProgress({ trouble: error.message });
    }
  };
  return (
    <form class="texts-form" onSubmit={submit}>
      {texts.map(({ text, source }, index) => (
        <div class="texts-row">
          {reads && (
            <Field
              name={`source ${index + 1}`}
              value={source}
              most={served.max_characters}
              onInput={(value) => edit(index, { source: value })}
            />
          )}
          <Field
            name={`${reads ? "target" : "text"} ${index + 1}`}
            value={text}
            most={served.max_characters}
            onInput={(value) => edit(index, { text: value })}
          />
          {texts.length > 1 && (
            <button
              type="button"
              class="remove"
              aria-label={`remove text ${index + 1}`}
              onClick={() => setTexts(texts.filter((_, place) => place !== index))}
            >
              ×
            </button>
          )}
        </div>
      ))}
      <div class="controls">
        <Button type="submit" class="main-button" off={busy}>
          run the model
        </Button>
        {texts.length < served.max_texts && (
          <button type="button" onClick={() => setTexts([...texts, { ...texts.at(-1) }])}>
            one more text
          </button>
        )}
        <span role="status" class={trouble ? "trouble" : "soft"}>
          {trouble ?? (busy ? "asking the model …" : "The same word in two or three texts can be compared.")}
        </span>
      </div>
    </form>
  );
}

const Field = ({ name, value, most, onInput }) => (
  <label>
    {name}
    <textarea rows={1} maxLength={most} value={value} onInput={(event) => onInput(event.currentTarget.value)} />
  </label>
);
