// From the JSON of the page to typed arrays: {d, s, b, z} becomes {shape, data}.

const TYPES = { u8: Uint8Array, u16: Uint16Array, i32: Int32Array, f32: Float32Array };

const isPacked = (value) => typeof value === "object" && value !== null && "d" in value && "s" in value && "b" in value;

/** The same tree with every packed array unpacked; rejects with the path of what cannot be read. */
export async function unpack(value, path = "data") {
  if (isPacked(value)) return unpackArray(value, path);
  if (Array.isArray(value)) return Promise.all(value.map((item, index) => unpack(item, `${path}[${index}]`)));
  if (typeof value !== "object" || value === null) return value;
  const names = Object.keys(value);
  const values = await Promise.all(names.map((name) => unpack(value[name], `${path}.${name}`)));
  return Object.fromEntries(names.map((name, index) => [name, values[index]]));
}

async function unpackArray({ d: type, s: shape, b: text, z: deflated }, path) {
  const Type = TYPES[type];
  if (!Type) throw new Error(`${path} has numbers of type ${type}; this page reads ${Object.keys(TYPES).join(", ")}`);
  let bytes = fromBase64(text);
  if (deflated) bytes = await inflate(bytes, path);
  const size = shape.reduce((product, length) => product * length, 1);
  if (bytes.byteLength !== size * Type.BYTES_PER_ELEMENT) {
    throw new Error(
      `${path} holds ${bytes.byteLength} bytes; its shape [${shape}] of ${type} needs ${size * Type.BYTES_PER_ELEMENT}`,
    );
  }
  return { shape, data: new Type(bytes.buffer, 0, size) };
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index++) bytes[index] = binary.charCodeAt(index);
  return bytes;
}

async function inflate(bytes, path) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error(
      "this browser has no DecompressionStream: Chrome 123, Firefox 120, Safari 17.5 or a newer one opens the page",
    );
  }
  try {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  } catch (error) {
    throw new Error(`${path} cannot be inflated: ${error.message}`);
  }
}
