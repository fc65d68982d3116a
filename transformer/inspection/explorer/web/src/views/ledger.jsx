// Where the parameters of the model are, matrix by matrix, as explainers tally them.
import { whole } from "../format.js";
import { ShareBar } from "../parts/bars.jsx";
import { Section } from "../parts/section.jsx";

// In the words of the explainers: a head takes a vector down to its value, and brings it up again.
const NAMES = [
  [/embedding\/table$/, "embedding"],
  [/readout\/kernel$/, "unembedding"],
  [/query\/kernel$/, "query"],
  [/key\/kernel$/, "key"],
  [/value\/kernel$/, "value (down)"],
  [/output\/kernel$/, "output (value up)"],
  [/mlp\/up\/kernel$/, "up projection"],
  [/mlp\/gate\/kernel$/, "gate"],
  [/mlp\/down\/kernel$/, "down projection"],
];

const named = (part) => NAMES.find(([pattern]) => pattern.test(part))?.[1] ?? "";

export function LedgerView({ page }) {
  const { rows, total } = page.state.data.ledger;
  const most = Math.max(...rows.map((row) => row.count));
  return (
    <Section
      wide
      id="ledger"
      title="Where the parameters are"
      caption="Every matrix of the model and how many numbers it holds, as explainers tally them: without the few that are in biases, norms and positions, and with an unembedding even where it is the embedding once more."
    >
      <div class="table-scroll" tabIndex={0} role="group" aria-label="parameters, scrolls">
        <table class="ledger">
          <thead>
            <tr>
              <th scope="col">matrix</th>
              <th scope="col" class="figure">
                in all
              </th>
              <th scope="col">
                <span class="unseen">share</span>
              </th>
              <th scope="col">formula</th>
              <th scope="col" class="figure">
                per head
              </th>
              <th scope="col" class="figure">
                per layer
              </th>
            </tr>
          </thead>
          <tbody>
            {rows.map((row) => (
              <tr>
                <th scope="row">
                  {named(row.part)} <span class="path">{row.part}</span>
                </th>
                <td class="figure">{whole(row.count)}</td>
                <td class="bar">
                  <ShareBar share={row.count} most={most} />
                </td>
                <td>{row.formula}</td>
                <td class="figure">{whole(row.per_head)}</td>
                <td class="figure">{whole(row.per_block)}</td>
              </tr>
            ))}
            <tr class="total">
              <th scope="row">total of this tally</th>
              <td class="figure">{whole(total)}</td>
              <td colSpan={4} />
            </tr>
            <tr>
              <th scope="row">in the model, each counted once</th>
              <td class="figure">{whole(page.state.data.model.parameters)}</td>
              <td colSpan={4} />
            </tr>
          </tbody>
        </table>
      </div>
    </Section>
  );
}
