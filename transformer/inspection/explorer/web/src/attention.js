// One attention of one text: who may see whom, the weights of each head, and the steps that lead to them.
import { biased, capped, masked, products, scaled, softmax } from "./numerics.js";
import { number } from "./format.js";

export class Attention {
  static #made = 0;
  id = Attention.#made++; // tells views of another attention from this one's
  #offsets = new Map(); // layer -> where its cells begin in the pattern
  #steps = new Map(); // "layer/head" -> steps, the few that were asked for last

  /** `record` is an entry of text.attentions; `sides` has the tokens of its queries and keys. */
  constructor(record, sides) {
    Object.assign(this, record);
    this.rows = sides[record.queries].tokens; // queries
    this.columns = sides[record.keys].tokens; // keys
    this.masks = Array.from({ length: record.periods }, (_, period) => this.#unpackMask(period));
    let offset = 0;
    for (const layer of this.layers) {
      this.#offsets.set(layer, offset);
      offset += this.heads * this.masks[layer % this.periods].count;
    }
    if (offset !== this.pattern.data.length) {
      throw new Error(
        `${this.name}: the pattern has ${this.pattern.data.length} cells; its masks leave ${offset} visible`,
      );
    }
  }

  #unpackMask(period) {
    const [, length, stride] = this.visible.shape;
    const keys = this.columns.length;
    const seen = new Uint8Array(length * keys);
    let count = 0;
    for (let t = 0; t < length; t++) {
      for (let s = 0; s < keys; s++) {
        const byte = this.visible.data[(period * length + t) * stride + (s >> 3)];
        count += seen[t * keys + s] = (byte >> (s & 7)) & 1;
      }
    }
    return { seen, count };
  }

  /** Which pairs may attend in a layer: bytes [T, S], 1 = may. */
  mask(layer) {
    return this.masks[layer % this.periods].seen;
  }

  /** The weights of a head as the page keeps them for every layer, in 255ths: bytes [T, S]. */
  bytes(layer, head) {
    const { seen, count } = this.masks[layer % this.periods];
    let next = this.#offsets.get(layer) + head * count;
    const out = new Uint8Array(seen.length);
    for (let cell = 0; cell < seen.length; cell++) if (seen[cell]) out[cell] = this.pattern.data[next++];
    return out;
  }

  group(head) {
    return Math.floor((head * this.kv_heads) / this.heads);
  }

  /** Adds a layer's queries, keys and values that came later. */
  addDetail(layer, detail) {
    this.detail[layer] = detail;
    for (const head of Array(this.heads).keys()) this.#steps.delete(`${layer}/${head}`);
  }

  /**
   * How a head's weights come about: [{id, label, values [T, S]}], from q · k to softmax. Without detail of the layer
   * there is the last step only, from bytes: `exact` is false.
   */
  steps(layer, head) {
    const name = `${layer}/${head}`;
    if (!this.#steps.has(name)) {
      if (this.#steps.size > 8) this.#steps.delete(this.#steps.keys().next().value);
      this.#steps.set(name, this.detail[layer] ? this.#exactSteps(layer, head) : this.#roughSteps(layer, head));
    }
    return this.#steps.get(name);
  }

  #roughSteps(layer, head) {
    const values = Float64Array.from(this.bytes(layer, head), (byte) => byte / 255);
    return { exact: false, list: [{ id: "softmax", label: "softmax", values }] };
  }

  #exactSteps(layer, head) {
    const { query, key, bias } = this.detail[layer];
    const list = [{ id: "raw", label: "q · k", values: products(query, key, head, this.group(head)) }];
    const then = (id, label, values) => list.push({ id, label, values });
    then("scaled", scaleLabel(this.scale, this.head_width), scaled(list.at(-1).values, this.scale));
    if (this.softcap) then("capped", `cap ±${number(this.softcap, 0)}`, capped(list.at(-1).values, this.softcap));
    if (bias) then("biased", "+ position bias", biased(list.at(-1).values, bias, head));
    then("masked", "mask", masked(list.at(-1).values, this.mask(layer)));
    then("softmax", "softmax", softmax(list.at(-1).values, this.columns.length));
    return { exact: true, list };
  }

  /** The weights of a head: [T, S], exact where the layer has detail. */
  weights(layer, head) {
    return this.steps(layer, head).list.at(-1).values;
  }

  /** Whether a score is defined for any head. */
  measures(name) {
    return Boolean(this.#score(name)?.data.some((value) => !Number.isNaN(value)));
  }

  /** A score of a head by name, such as "entropy"; NaN where it is undefined, null where the page has none. */
  score(name, layer, head) {
    return this.#score(name)?.data[this.layers.indexOf(layer) * this.heads + head] ?? null;
  }

  #score(name) {
    return name === "ablation" ? this.ablation : this.scores[name];
  }
}

function scaleLabel(scale, width) {
  const root = Math.abs(scale * Math.sqrt(width) - 1) < 1e-3;
  return root ? `÷ √${width}` : `× ${number(scale, 3)}`;
}

/** The text of a data set with its attentions made ready. */
export function prepare(text) {
  return { ...text, attentions: text.attentions.map((record) => new Attention(record, text.sides)) };
}

/** What to call an attention: a decoder's own, an encoder's own, or from the one to the other. */
export const titles = {
  decoder: "decoder self-attention",
  encoder: "encoder self-attention",
  "decoder/cross": "cross-attention",
};
