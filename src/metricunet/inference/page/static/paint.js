// The mask of a case as it is edited: numbers of structures, a byte for each voxel, the first axis fastest.
// Axes: 0 runs to the patient's right, 1 to the front, 2 to the head. Every change can be undone.

const MOST_UNDO = 200;

export class Mask {
  // dims and spacing: along the three axes; data: Uint8Array of dims[0] * dims[1] * dims[2].
  constructor(dims, spacing, data) {
    if (data.length !== dims[0] * dims[1] * dims[2]) throw new Error("the mask does not fill its field");
    this.dims = dims;
    this.spacing = spacing;
    this.data = data;
    this.done = [];
    this.undone = [];
    this.open = null;
    this.bottom = {}; // stands for what cannot be undone any more
    this.saved = this.bottom;
  }

  at(i, j, k) {
    return this.data[i + this.dims[0] * (j + this.dims[1] * k)];
  }

  // The last step that was done and not undone.
  get top() {
    return this.done.at(-1) ?? this.bottom;
  }

  // Whether the voxels are others than those after the step that is saved.
  get isChanged() {
    return this.top !== this.saved;
  }

  get strides() {
    return [1, this.dims[0], this.dims[0] * this.dims[1]];
  }

  // Changes between begin and end are undone together.
  begin() {
    this.open = new Map();
  }

  set(index, value) {
    const before = this.data[index];
    if (before === value) return;
    if (!this.open.has(index)) this.open.set(index, before);
    this.data[index] = value;
  }

  // Returns how many voxels have changed.
  end() {
    const changes = [...this.open].filter(([index, before]) => this.data[index] !== before);
    this.open = null;
    if (changes.length === 0) return 0;
    const indices = Uint32Array.from(changes, (c) => c[0]);
    const before = Uint8Array.from(changes, (c) => c[1]);
    const after = Uint8Array.from(changes, (c) => this.data[c[0]]);
    this.done.push({ indices, before, after });
    this.undone = [];
    if (this.done.length > MOST_UNDO) this.bottom = this.done.shift();
    return changes.length;
  }

  undo() {
    const step = this.done.pop();
    if (!step) return false;
    step.indices.forEach((index, n) => (this.data[index] = step.before[n]));
    this.undone.push(step);
    return true;
  }

  redo() {
    const step = this.undone.pop();
    if (!step) return false;
    step.indices.forEach((index, n) => (this.data[index] = step.after[n]));
    this.done.push(step);
    return true;
  }

  // Paint the voxels whose centres lie within a radius of the line from one point to another, in one slice, and those
  // in which the line begins and ends.
  // axis: that the slice is across; from and to: voxels, fractions allowed; value 0 erases `only` that structure.
  stroke(axis, from, to, radius, value, only) {
    const [a, b] = [0, 1, 2].filter((other) => other !== axis);
    const slice = Math.round(from[axis]);
    if (slice < 0 || slice >= this.dims[axis]) return;
    const [sa, sb] = [this.spacing[a], this.spacing[b]];
    const start = [from[a] * sa, from[b] * sb];
    const run = [to[a] * sa - start[0], to[b] * sb - start[1]];
    const length2 = run[0] * run[0] + run[1] * run[1];
    const low = (x, y, s) => Math.max(0, Math.ceil((Math.min(x, y) - radius) / s));
    const high = (x, y, s, n) => Math.min(n - 1, Math.floor((Math.max(x, y) + radius) / s));
    const [lowA, highA] = [low(start[0], start[0] + run[0], sa), high(start[0], start[0] + run[0], sa, this.dims[a])];
    const [lowB, highB] = [low(start[1], start[1] + run[1], sb), high(start[1], start[1] + run[1], sb, this.dims[b])];
    const strides = this.strides;
    const put = (p, q) => {
      const index = slice * strides[axis] + p * strides[a] + q * strides[b];
      if (value !== 0 || this.data[index] === only) this.set(index, value);
    };
    for (let q = lowB; q <= highB; q++) {
      for (let p = lowA; p <= highA; p++) {
        const x = p * sa - start[0];
        const y = q * sb - start[1];
        const along = length2 > 0 ? Math.min(1, Math.max(0, (x * run[0] + y * run[1]) / length2)) : 0;
        const dx = x - along * run[0];
        const dy = y - along * run[1];
        if (dx * dx + dy * dy <= radius * radius) put(p, q);
      }
    }
    // Between thick slices a small brush may reach no centre; it takes the voxel that it is in all the same.
    for (const point of [from, to]) {
      const [p, q] = [Math.round(point[a]), Math.round(point[b])];
      if (p >= 0 && q >= 0 && p < this.dims[a] && q < this.dims[b]) put(p, q);
    }
  }

  // Take a structure out of one axial slice.
  clearSlice(k, value) {
    const size = this.dims[0] * this.dims[1];
    for (let index = k * size; index < (k + 1) * size; index++) {
      if (this.data[index] === value) this.set(index, 0);
    }
  }

  // The slices that hold a structure.
  slicesWith(value) {
    const size = this.dims[0] * this.dims[1];
    const found = [];
    for (let k = 0; k < this.dims[2]; k++) {
      const from = this.data.indexOf(value, k * size);
      if (from >= 0 && from < (k + 1) * size) found.push(k);
    }
    return found;
  }

  // The middle of a structure, in whole voxels; null where it has none.
  middleOf(value) {
    return this.middle((other) => other === value, 0, this.dims[2] - 1);
  }

  // The middle of what `isIn` holds for in the axial slices from first to last; null where it holds nowhere.
  middle(isIn, first, last) {
    const [nx, ny] = this.dims;
    const sums = [0, 0, 0];
    let count = 0;
    for (let k = first, n = first * nx * ny; k <= last; k++) {
      for (let j = 0; j < ny; j++) {
        for (let i = 0; i < nx; i++, n++) {
          if (!isIn(this.data[n])) continue;
          sums[0] += i;
          sums[1] += j;
          sums[2] += k;
          count += 1;
        }
      }
    }
    return count ? sums.map((sum) => Math.round(sum / count)) : null;
  }

  // Fill the slices that lack a structure between two that hold it: between their outlines, by distance.
  // Voxels of other structures stay. Returns the slices that were filled.
  fillBetween(value) {
    const slices = this.slicesWith(value);
    const size = this.dims[0] * this.dims[1];
    const filled = [];
    for (let n = 1; n < slices.length; n++) {
      const [below, above] = [slices[n - 1], slices[n]];
      if (above - below < 2) continue;
      const lower = this.depth(below, value);
      const upper = this.depth(above, value);
      for (let k = below + 1; k < above; k++) {
        const share = (k - below) / (above - below);
        for (let m = 0; m < size; m++) {
          const inside = (1 - share) * lower[m] + share * upper[m] > 0;
          if (inside && this.data[k * size + m] === 0) this.set(k * size + m, value);
        }
        filled.push(k);
      }
    }
    return filled;
  }

  // Distance in mm of each voxel of an axial slice to the outline of a structure: positive inside, negative outside.
  depth(k, value) {
    const [nx, ny] = this.dims;
    const slice = this.data.subarray(k * nx * ny, (k + 1) * nx * ny);
    const inside = distances(slice, nx, ny, this.spacing, (v) => v !== value);
    const outside = distances(slice, nx, ny, this.spacing, (v) => v === value);
    return inside.map((d, m) => (d > 0 ? d : -outside[m]));
  }

  // The box around all structures, `margin` voxels wider: [first, last] of each axis; null without any.
  bounds(margin) {
    const [nx, ny, nz] = this.dims;
    const low = [nx, ny, nz];
    const high = [-1, -1, -1];
    for (let index = 0, k = 0; k < nz; k++) {
      for (let j = 0; j < ny; j++) {
        for (let i = 0; i < nx; i++, index++) {
          if (this.data[index] === 0) continue;
          if (i < low[0]) low[0] = i;
          if (i > high[0]) high[0] = i;
          if (j < low[1]) low[1] = j;
          if (j > high[1]) high[1] = j;
          if (k < low[2]) low[2] = k;
          if (k > high[2]) high[2] = k;
        }
      }
    }
    if (high[0] < 0) return null;
    return this.dims.map((n, a) => [Math.max(0, low[a] - margin), Math.min(n - 1, high[a] + margin)]);
  }

  // The mask on a wider field, whose voxels beyond this one are `beyond`; `offset` is where this one begins there.
  // What can be undone here can be undone there.
  within(dims, offset, beyond) {
    const wide = new Mask(dims, this.spacing, beyond);
    const [nx, ny, nz] = this.dims;
    const move = (index) => {
      const i = index % nx;
      const j = Math.floor(index / nx) % ny;
      const k = Math.floor(index / (nx * ny));
      return i + offset[0] + dims[0] * (j + offset[1] + dims[1] * (k + offset[2]));
    };
    for (let k = 0; k < nz; k++) {
      for (let j = 0; j < ny; j++) {
        const from = nx * (j + ny * k);
        wide.data.set(this.data.subarray(from, from + nx), move(from));
      }
    }
    const moved = new Map([...this.done, ...this.undone].map((step) => [step, { ...step, indices: step.indices.map(move) }]));
    wide.done = this.done.map((step) => moved.get(step));
    wide.undone = this.undone.map((step) => moved.get(step));
    wide.bottom = this.bottom;
    wide.saved = moved.get(this.saved) ?? this.saved;
    return wide;
  }
}

// Distance in mm of each pixel to the nearest one for which `isGoal`; 0 on those (Felzenszwalb and Huttenlocher).
function distances(slice, nx, ny, spacing, isGoal) {
  const far = 1e12;
  const squares = Float64Array.from(slice, (v) => (isGoal(v) ? 0 : far));
  const line = new Float64Array(Math.max(nx, ny));
  for (let j = 0; j < ny; j++) pass(squares, j * nx, 1, nx, spacing[0], line);
  for (let i = 0; i < nx; i++) pass(squares, i, nx, ny, spacing[1], line);
  return squares.map(Math.sqrt);
}

function pass(squares, start, stride, n, step, line) {
  for (let p = 0; p < n; p++) line[p] = squares[start + p * stride];
  const roots = new Int32Array(n);
  const borders = new Float64Array(n + 1);
  let last = 0;
  borders[0] = -Infinity;
  borders[1] = Infinity;
  const meet = (p, q) => (line[q] - line[p]) / (2 * step * step * (q - p)) + (p + q) / 2;
  for (let q = 1; q < n; q++) {
    let border = meet(roots[last], q);
    while (border <= borders[last]) {
      last -= 1;
      border = meet(roots[last], q);
    }
    last += 1;
    roots[last] = q;
    borders[last] = border;
    borders[last + 1] = Infinity;
  }
  for (let p = 0, r = 0; p < n; p++) {
    while (borders[r + 1] < p) r += 1;
    const d = (p - roots[r]) * step;
    squares[start + p * stride] = d * d + line[roots[r]];
  }
}
