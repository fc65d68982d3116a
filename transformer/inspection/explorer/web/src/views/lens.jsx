// What each layer would say next, were it the last: the logit lens.
import { percent } from "../format.js";
import { Missing, Section, warning } from "../parts/section.jsx";
import { Token } from "../parts/token.jsx";

export function LensView({ page }) {
  const { lens } = page.text;
  const { predicts } = page;
  return (
    <Section
      id="lens"
      title={predicts ? "What each layer would say" : "What each layer comes near to"}
      caption={`The vector after each layer, read out as if it were the last${predicts ? ": how the guess takes shape" : ""} (the logit lens).`}
      warned={warning(page)}
    >
      {lens ? <Table page={page} lens={lens} /> : <Missing>This model has no read-out to look through.</Missing>}
    </Section>
  );
}

function Table({ page, lens }) {
  const tokens = page.text.sides[lens.side].tokens;
  const position = page.readAt;
  const [depth, length, count] = lens.ids.shape;
  const layers = Array.from({ length: depth }, (_, layer) => layer);
  const at = (layer, place) => (layer * length + position) * count + place;
  return (
    <>
      <p class="pair">
        {page.place} <Token token={tokens[position]} position={position} role="query" />
      </p>
      <div class="table-scroll" tabIndex={0} role="group" aria-label="logit lens, scrolls">
        <table class="lens">
          <thead>
            <tr>
              <th scope="col">after</th>
              <th scope="col" colSpan={count}>
                {page.predicts ? "likeliest tokens" : "nearest tokens"}
              </th>
            </tr>
          </thead>
          <tbody>
            {layers.map((layer) => (
              <tr class={layer === page.state.layer + 1 ? "chosen" : ""}>
                <th scope="row">{layer === 0 ? "embedding" : `layer ${layer - 1}`}</th>
                {Array.from({ length: count }, (_, place) => (
                  <td>
                    <Token token={page.named(lens.ids.data[at(layer, place)])} />{" "}
                    <span class="figure soft">{percent(lens.probabilities.data[at(layer, place)])}</span>
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  );
}
