// A decoder: latents to an image. `layers` are those of a torch.nn.Sequential, with images as [C, H, W].
"use strict";

const activations = {
  ReLU: (x) => Math.max(x, 0),
  Tanh: Math.tanh,
  ELU: (x) => (x > 0 ? x : Math.expm1(x)),
  GELU: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  SiLU: (x) => x / (1 + Math.exp(-x)),
};

const kinds = {
  Linear(x, { weight, bias }) {
    const found = Float32Array.from(bias), data = x.data, inputs = data.length;
    for (let row = 0, at = 0; row < found.length; row++) {
      let sum = 0;
      for (let i = 0; i < inputs; i++) sum += weight[at++] * data[i];
      found[row] += sum;
    }
    return { data: found, shape: [found.length] };
  },

  GLU(x) {
    const half = x.data.length / 2, sigmoid = (value) => 1 / (1 + Math.exp(-value));
    return { data: x.data.slice(0, half).map((value, i) => value * sigmoid(x.data[half + i])), shape: [half] };
  },

  Unflatten(x, { args }) {
    return { data: x.data, shape: args[1] };
  },

  // 3 x 3 with padding 1, or 1 x 1; stride 1.
  Conv2d(x, { weight, bias, args }) {
    const data = x.data, [channels, height, width] = x.shape, [, outputs, size] = args, pad = (size - 1) / 2;
    const found = new Float32Array(outputs * height * width);
    for (let o = 0; o < outputs; o++) {
      const first = o * height * width;
      found.fill(bias[o], first, first + height * width);
      for (let c = 0; c < channels; c++)
        for (let r = 0; r < size; r++)
          for (let s = 0; s < size; s++) {
            const w = weight[((o * channels + c) * size + r) * size + s];
            const left = Math.max(0, pad - s), right = Math.min(width, width + pad - s);
            for (let y = Math.max(0, pad - r); y < Math.min(height, height + pad - r); y++) {
              const to = first + y * width, from = (c * height + y + r - pad) * width + s - pad;
              for (let z = left; z < right; z++) found[to + z] += w * data[from + z];
            }
          }
    }
    return { data: found, shape: [outputs, height, width] };
  },

  // 4 x 4, stride 2, padding 1: it doubles height and width.
  ConvTranspose2d(x, { weight, bias, args }) {
    const data = x.data, [channels, height, width] = x.shape;
    const outputs = args[1], rows = 2 * height, cols = 2 * width;
    const found = new Float32Array(outputs * rows * cols);
    for (let o = 0; o < outputs; o++) found.fill(bias[o], o * rows * cols, (o + 1) * rows * cols);
    for (let c = 0; c < channels; c++)
      for (let o = 0; o < outputs; o++)
        for (let r = 0; r < 4; r++)
          for (let s = 0; s < 4; s++) {
            const w = weight[((c * outputs + o) * 4 + r) * 4 + s];
            const last = s === 3 ? width - 1 : width;
            for (let y = r ? 0 : 1; y < (r === 3 ? height - 1 : height); y++) {
              const to = (o * rows + 2 * y + r - 1) * cols + s - 1, from = (c * height + y) * width;
              for (let z = s ? 0 : 1; z < last; z++) found[to + 2 * z] += w * data[from + z];
            }
          }
    return { data: found, shape: [outputs, rows, cols] };
  },

  // Only crops: negative padding to the right and below.
  ZeroPad2d(x, { args }) {
    const [channels, height, width] = x.shape, [, right, , below] = args[0];
    const rows = height + below, cols = width + right, found = new Float32Array(channels * rows * cols);
    for (let c = 0; c < channels; c++)
      for (let y = 0; y < rows; y++)
        for (let z = 0; z < cols; z++) found[(c * rows + y) * cols + z] = x.data[(c * height + y) * width + z];
    return { data: found, shape: [channels, rows, cols] };
  },

  GroupNorm(x, { weight, bias, args }) {
    const [groups, channels] = args, size = x.data.length / groups, pixels = x.data.length / channels;
    const found = new Float32Array(x.data.length);
    for (let g = 0; g < groups; g++) {
      const part = x.data.subarray(g * size, (g + 1) * size);
      let mean = 0, variance = 0;
      for (const value of part) mean += value / size;
      for (const value of part) variance += (value - mean) ** 2 / size;
      for (let i = 0; i < size; i++) {
        const at = g * size + i, c = Math.floor(at / pixels);
        found[at] = ((part[i] - mean) / Math.sqrt(variance + 1e-5)) * weight[c] + bias[c];
      }
    }
    return { data: found, shape: x.shape };
  },

  Residual(x, { layers }) {
    const found = run(layers, x);
    return { data: found.data.map((value, i) => value + x.data[i]), shape: x.shape };
  },
};

function run(layers, x) {
  for (const layer of layers) {
    const activation = activations[layer.kind];
    x = activation ? { data: x.data.map(activation), shape: x.shape } : kinds[layer.kind](x, layer);
  }
  return x;
}

// Half precision, little-endian, in base64.
function floats(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), found = new Float32Array(bytes.length / 2);
  for (let i = 0; i < found.length; i++) {
    const bits = bytes[2 * i] | (bytes[2 * i + 1] << 8), exponent = (bits >> 10) & 31, rest = bits & 1023;
    const size = exponent ? (1 + rest / 1024) * 2 ** (exponent - 15) : rest * 2 ** -24;
    found[i] = bits & 0x8000 ? -size : size;
  }
  return found;
}

function unpack(layers) {
  for (const layer of layers) {
    for (const name of ["weight", "bias"]) if (layer[name]) layer[name] = floats(layer[name]);
    if (layer.layers) unpack(layer.layers);
  }
  return layers;
}

// Intensities [H, W, C] from 0 to 1 of latents [L]; `label` is the number of a class, if the model knows classes.
function decode(model, latent, label) {
  const told = model.labels ? model.labels.slice(label * latent.length, (label + 1) * latent.length) : [];
  const out = run(model.layers, { data: Float32Array.from([...latent, ...told]), shape: null });
  const [height, width, channels] = model.shape, each = model.outputs * channels;
  const found = new Float32Array(height * width * channels), flat = out.shape.length === 1;
  for (let at = 0; at < height * width; at++)
    for (let c = 0; c < channels; c++) {
      // A dense decoder gives [H, W, outputs C], any other [outputs C, H, W]. The location comes first.
      const value = out.data[flat ? at * each + c : c * height * width + at];
      found[at * channels + c] = model.sigmoid ? 1 / (1 + Math.exp(-value)) : Math.min(Math.max(value, 0), 1);
    }
  return found;
}
