// Signed bars of the entries of a vector, and bars of shares.
import { number } from "../format.js";

/** A vector as bars from a middle line, all against the same largest size; `order` says which entry stands where. */
export function VectorBars({ values, order, largest, tone, label, height = 56, marked, onMark }) {
  const half = height / 2;
  const step = 1000 / order.length;
  const at = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return Math.max(0, Math.min(order.length - 1, Math.floor(((event.clientX - box.left) / box.width) * order.length)));
  };
  return (
    <svg
      class={`vector ${tone}`}
      viewBox={`0 0 1000 ${height}`}
      preserveAspectRatio="none"
      role="img"
      aria-label={label}
      height={height}
      onPointerMove={(event) => onMark?.(at(event))}
      onPointerLeave={() => onMark?.(null)}
    >
      {marked !== null && marked !== undefined && (
        <rect class="vector-mark" x={marked * step} y="0" width={step} height={height} />
      )}
      <line class="vector-axis" x1="0" x2="1000" y1={half} y2={half} />
      {order.map((index, place) => {
        const size = (half - 1) * Math.min(1, Math.abs(values[index]) / (largest || 1));
        const down = values[index] < 0;
        return (
          <rect
            key={index}
            class={down ? "down" : "up"}
            x={place * step + step * 0.12}
            width={step * 0.76}
            y={down ? half : half - size}
            height={size}
          />
        );
      })}
    </svg>
  );
}

/** A bar of a share between 0 and 1, with a lighter one behind it for what it was. */
export function ShareBar({ share, before = null, most = 1, tone = "weight" }) {
  const width = (value) => ({ width: `${Math.max(0, Math.min(100, (100 * value) / most))}%` });
  return (
    <span class="share" aria-hidden="true">
      {before !== null && <span class="share-before" style={width(before)} />}
      <span class={`share-now ${tone}`} style={width(share)} />
    </span>
  );
}

/** A number on a row with its name, as a step of a calculation. */
export const Term = ({ name, value, decimals = 3, tone = "" }) => (
  <div class={`term ${tone}`}>
    <dt>{name}</dt>
    <dd>{typeof value === "string" ? value : number(value, decimals)}</dd>
  </div>
);
