// Numbers as the page writes them: a true minus sign, and a dash where there is none.

const missing = (value) => value === null || value === undefined || Number.isNaN(value);

/** A number with so many decimals, or in scientific notation where those would show nothing. */
export function number(value, decimals = 3) {
  if (missing(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text =
    size >= 1e6 || (size > 0 && size < 0.5 * 10 ** -decimals) ? size.toExponential(1) : size.toFixed(decimals);
  return value < 0 ? `−${text}` : text;
}

/** A weight as a sentence has it, with so many decimals: one too small for them is less than their last place. */
export const weight = (value, decimals = 2) =>
  value > 0 && value < 0.5 * 10 ** -decimals ? `< ${10 ** -decimals}` : number(value, decimals);

/** A number whose sign is always written. */
export const signed = (value, decimals = 2) =>
  missing(value) || value < 0 ? number(value, decimals) : `+${number(value, decimals)}`;

/** Of a pair whether the mask lets it through. */
export const throughMask = (seen) => (seen ? "may see" : "−∞");

/** A probability in per cent. */
export function percent(probability) {
  if (missing(probability)) return "–";
  if (probability > 0 && probability < 0.0005) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

/** A whole number with its thousands apart. */
export const whole = (value) => (missing(value) ? "" : value.toLocaleString("en-US"));
