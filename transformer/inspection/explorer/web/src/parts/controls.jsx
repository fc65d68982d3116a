// The few controls that the views share.
import { useId } from "preact/hooks";

/** One of several, side by side: radio buttons that look like a switch. */
export function Choice({ label, options, value, onChange, hidden = false }) {
  const name = useId();
  return (
    <fieldset class="choice">
      <legend class={hidden ? "unseen" : ""}>{label}</legend>
      <div class="choice-options">
        {options.map((option) => (
          <label class={option.disabled ? "disabled" : ""} title={option.title}>
            <input
              type="radio"
              name={name}
              value={option.value}
              checked={option.value === value}
              disabled={option.disabled}
              onChange={() => onChange(option.value)}
            />
            <span>{option.label}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

/** One of many, from a list. */
export function Pick({ label, options, value, onChange }) {
  const id = useId();
  return (
    <span class="pick">
      <label for={id}>{label}</label>
      <select id={id} value={String(value)} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map((option) => (
          <option value={String(option.value)} selected={String(option.value) === String(value)}>
            {option.label}
          </option>
        ))}
      </select>
    </span>
  );
}

/** A button that keeps the focus while it is off. */
export const Button = ({ off, onClick, ...rest }) => (
  <button {...rest} aria-disabled={off} onClick={(event) => (off ? event.preventDefault() : onClick?.(event))} />
);

/** A number from a list with a button to either side: layers and heads. */
export function Spin({ label, options, value, onChange }) {
  const index = options.indexOf(value);
  const go = (step) => onChange(options[index + step]);
  return (
    <span class="spin">
      <Button type="button" aria-label={`previous ${label}`} off={index <= 0} onClick={() => go(-1)}>
        ‹
      </Button>
      <Pick
        label={label}
        options={options.map((option) => ({ value: option, label: option }))}
        value={value}
        onChange={(chosen) => onChange(Number(chosen))}
      />
      <Button type="button" aria-label={`next ${label}`} off={index >= options.length - 1} onClick={() => go(1)}>
        ›
      </Button>
    </span>
  );
}

/** A slider with its number, both of which can be set; `shown` names ends of the scale, such as "off". */
export function Slider({ label, value, least, most, step, onChange, shown }) {
  const id = useId();
  const set = (event) => {
    const wanted = event.currentTarget.valueAsNumber;
    if (!Number.isNaN(wanted)) onChange(Math.max(least, Math.min(most, wanted)));
  };
  const range = { min: least, max: most, step, value };
  return (
    <div class="slider">
      <label for={id}>{label}</label>
      <input id={id} type="range" {...range} aria-valuetext={shown} onInput={set} />
      <input type="number" aria-label={`${label}, as a number`} {...range} onChange={set} />
      <span class="slider-note">{shown}</span>
    </div>
  );
}

export function Check({ label, checked, onChange }) {
  return (
    <label class="check">
      <input type="checkbox" checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} />
      {label}
    </label>
  );
}
