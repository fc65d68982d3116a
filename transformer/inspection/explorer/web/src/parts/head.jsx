import { whole } from "../format.js";
import { line } from "../tokens.js";
import { TextsForm } from "../views/texts.jsx";
import { Choice } from "./controls.jsx";

/** What the page is about: the model, in a line of facts, and the form for other texts where a model answers. */
export function Head({ page, themeChosen, chooseTheme }) {
  const { title, origin, model, served } = page.state.data;
  return (
    <header>
      <div class="head-line">
        <div>
          <h1>{line(title) || "no text"}</h1>
          <p class="caption">{[line(origin), ...facts(model)].join(" · ")}</p>
        </div>
        <Choice
          label="colours"
          hidden
          value={themeChosen}
          onChange={chooseTheme}
          options={["auto", "light", "dark"].map((value) => ({ value, label: value }))}
        />
      </div>
      {served && <TextsForm page={page} served={served} />}
    </header>
  );
}

function facts({ parameters, width, vocab, stacks }) {
  const described = Object.entries(stacks).map(([name, stack]) => {
    const groups = stack.kv_heads === stack.heads ? "" : ` over ${stack.kv_heads} keys and values`;
    return `${name} of ${stack.depth} layers, ${stack.heads} heads of width ${stack.head_width}${groups}`;
  });
  return [
    `${whole(parameters)} parameters`,
    `vectors of ${whole(width)} numbers`,
    ...described,
    `${whole(vocab)} tokens`,
  ];
}
