import { describe, pieces } from "../tokens.js";

/** A token as text: what cannot be seen in it is marked, and its direction stays its own. */
export function Token({ token, position, role = "" }) {
  return (
    <bdi class={`token ${role}`} title={position === undefined ? undefined : describe(token, position)}>
      {pieces(token).map(({ text, mark }) => (mark ? <span class="mark">{text}</span> : text))}
    </bdi>
  );
}

/** Tokens in a row that wraps, each a button; `roles` says which are the query and the key, `shades` from 0 to 1. */
export function TokenRow({ tokens, chosen, shades, role = "query", label, onChoose }) {
  const move = (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(tokens.length - 1, chosen + step));
    onChoose(next);
    event.currentTarget.children[next].focus();
  };
  return (
    <div class="token-row" role="listbox" aria-label={label} aria-orientation="horizontal" onKeyDown={move}>
      {tokens.map((token, position) => (
        <button
          type="button"
          role="option"
          aria-selected={position === chosen}
          tabIndex={position === chosen ? 0 : -1}
          class={`word ${position === chosen ? role : ""}`}
          onClick={() => onChoose(position)}
        >
          {shades && <Shade weight={shades[position]} />}
          <Token token={token} position={position} />
        </button>
      ))}
    </div>
  );
}

function Shade({ weight }) {
  return <span class="shade" style={{ opacity: String(Math.sqrt(weight || 0)) }} />;
}
