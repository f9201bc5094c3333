// The scan in three planes and its structures in space, drawn by NiiVue.

import { DRAG_MODE, NVImage, Niivue, SLICE_TYPE } from "./niivue.js";

// HU, lowest and highest that are told apart.
export const WINDOWS = [
  { name: "Soft tissue", range: [-135, 215] },
  { name: "Prostate", range: [-35, 115] },
  { name: "Fat", range: [-200, 100] },
  { name: "Bone", range: [-350, 1150] },
  { name: "Wide", range: [-1000, 1000] },
];

// Opacity of the inside of structures, and of their outlines. A hidden inside that is not quite 0 has an outline.
export const STYLES = [
  { name: "Outlines", inside: 0.004, outline: 1 },
  { name: "Filled", inside: 0.35, outline: 1 },
  { name: "Hidden", inside: 0, outline: 0 },
];

// Which planes are shown where: left, top, width and height as shares of the picture, if wide and if narrow.
const { AXIAL, CORONAL, SAGITTAL } = SLICE_TYPE;
const WIDE = [[AXIAL, [0, 0, 0.62, 1]], [CORONAL, [0.62, 0, 0.38, 0.5]], [SAGITTAL, [0.62, 0.5, 0.38, 0.5]]];
const NARROW = [[AXIAL, [0, 0, 1, 0.65]], [CORONAL, [0, 0.65, 0.5, 0.35]], [SAGITTAL, [0.5, 0.65, 0.5, 0.35]]];
const alone = (plane) => [[plane, [0, 0, 1, 1]]];
export const PLANES = {
  all: { wide: WIDE, narrow: NARROW },
  axial: { wide: alone(AXIAL), narrow: alone(AXIAL) },
  coronal: { wide: alone(CORONAL), narrow: alone(CORONAL) },
  sagittal: { wide: alone(SAGITTAL), narrow: alone(SAGITTAL) },
};

// Whether a key is meant for what it is pressed in, and is none of the page's.
export function isTyping(event) {
  const { target, key } = event;
  if (target.closest("textarea, dialog, input:not([type=checkbox], [type=range])")) return true;
  return Boolean(target.closest("select, input")) && (key.startsWith("Arrow") || key === "Home" || key === "End");
}

// What was chosen with the mouse gives the keys back to the page.
export function releaseKeys() {
  document.addEventListener("change", ({ target }) => {
    if (target.matches("select, [type=checkbox], [type=range]") && !target.matches(":focus-visible")) target.blur();
  });
}

// The axis that a plane is across, by NiiVue's number of the plane.
const AXIS_OF_PLANE = [2, 1, 0];
const BACKGROUND = [0.04, 0.05, 0.06, 1];
// Blocks of a structure's surface are smoothed over so many voxels; around it lies so much empty space.
const SMOOTHING = 1;
const MARGIN = 4;

export class Viewer {
  constructor(onMove) {
    this.planes = new Niivue({
      backColor: BACKGROUND,
      crosshairColor: [0.35, 0.8, 0.95, 0.7],
      crosshairWidthUnit: "mm",
      crosshairWidth: 0.5,
      crosshairGap: 6,
      fontColor: [0.75, 0.8, 0.85, 1],
      fontMinPx: 14,
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      isCornerOrientationText: false,
      dragAndDropEnabled: false,
      dragMode: DRAG_MODE.pan,
      tileMargin: 2,
      logLevel: "error",
      loadingText: "",
    });
    this.solid = new Niivue({
      backColor: BACKGROUND,
      isOrientCube: true,
      show3Dcrosshair: false,
      crosshairWidth: 0,
      dragAndDropEnabled: false,
      sliceType: SLICE_TYPE.RENDER,
      smoothDrawing: SMOOTHING,
      logLevel: "error",
      loadingText: "",
    });
    this.planes.onLocationChange = () => onMove(this.position, this.hu);
    this.solidWaits = 0;
    this.solidTurn = 0;
  }

  async attach(planesCanvas, solidCanvas) {
    await this.planes.attachToCanvas(planesCanvas, false);
    if (solidCanvas) await this.solid.attachToCanvas(solidCanvas, true);
    else this.solid = null;
    this.setPlane("all");
    new ResizeObserver(() => this.setPlane(this.plane)).observe(planesCanvas);
  }

  // Show a scan (the bytes of a NIfTI file whose axes run right, front, head) and the mask on the same field,
  // unless something else is wanted by the time that it is read. Returns whether it is shown.
  async load(scan, mask, colours, isWanted, hidden = []) {
    const nv = this.planes;
    const [low, high] = WINDOWS[0].range;
    const image = await NVImage.loadFromUrl({ url: "scan.nii", name: "scan.nii", buffer: scan, cal_min: low, cal_max: high });
    if (!isWanted()) return false;
    this.colours = colours;
    for (const volume of [...nv.volumes]) nv.removeVolume(volume);
    if (nv.drawBitmap) nv.closeDrawing(); // it is that of another field
    nv.addVolume(image);
    this.hidden = new Set(hidden);
    nv.setDrawColormap(drawingColours(this.colours, this.hidden));
    this.setMask(mask);
    return true;
  }

  setMask(mask) {
    this.mask = mask;
    this.planes.createEmptyDrawing();
    this.planes.drawBitmap = mask.data;
    this.planes.clickToSegmentGrowingBitmap = null;
    this.refresh(0, mask.dims[2] - 1);
    this.refreshSolid();
  }

  // Draw the mask anew between two axial slices.
  refresh(first, last) {
    const nv = this.planes;
    const gl = nv.gl;
    const [nx, ny] = this.mask.dims;
    gl.activeTexture(gl.TEXTURE7);
    gl.bindTexture(gl.TEXTURE_3D, nv.drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    const part = this.mask.data.subarray(first * nx * ny, (last + 1) * nx * ny);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, 0, 0, first, nx, ny, last - first + 1, gl.RED, gl.UNSIGNED_BYTE, part);
    nv.drawScene();
  }

  refreshAll() {
    this.refresh(0, this.mask.dims[2] - 1);
  }

  // Draw the structures in space, once nothing has changed for a moment.
  refreshSolid(pause = 0) {
    if (!this.solid) return;
    clearTimeout(this.solidWaits);
    this.solidWaits = setTimeout(() => this.drawSolid(), pause);
  }

  async drawSolid() {
    const nv = this.solid;
    const turn = ++this.solidTurn;
    const box = this.mask.bounds(MARGIN);
    const clear = () => {
      for (const volume of [...nv.volumes]) nv.removeVolume(volume);
      if (nv.drawBitmap) nv.closeDrawing();
    };
    if (!box) return clear();
    const dims = box.map(([low, high]) => high - low + 1);
    const part = new Uint8Array(dims[0] * dims[1] * dims[2]);
    for (let n = 0, k = box[2][0]; k <= box[2][1]; k++) {
      for (let j = box[1][0]; j <= box[1][1]; j++, n += dims[0]) {
        const from = box[0][0] + this.mask.dims[0] * (j + this.mask.dims[1] * k);
        part.set(this.mask.data.subarray(from, from + dims[0]), n);
      }
    }
    const spacing = this.mask.spacing;
    const affine = [spacing[0], 0, 0, 0, 0, spacing[1], 0, 0, 0, 0, spacing[2], 0, 0, 0, 0, 1];
    // The drawing needs a volume to lie on: one that is empty and never seen.
    const file = NVImage.createNiftiArray(dims, spacing, affine, 2, new Uint8Array(part.length));
    const empty = await NVImage.loadFromUrl({ url: "empty.nii", name: "empty.nii", buffer: file.buffer, cal_min: 1, cal_max: 2 });
    if (turn !== this.solidTurn) return; // something newer is being drawn
    clear();
    nv.addVolume(empty);
    nv.setDrawColormap(drawingColours(this.colours, this.hidden));
    nv.createEmptyDrawing();
    nv.drawBitmap = part;
    nv.setDrawOpacity(1);
    nv.refreshDrawing(true);
  }

  setWindow(range) {
    const nv = this.planes;
    if (nv.volumes.length === 0) return;
    [nv.volumes[0].cal_min, nv.volumes[0].cal_max] = range;
    nv.updateGLVolume();
  }

  setStyle(style) {
    this.planes.drawRimOpacity = style.outline;
    this.planes.setDrawOpacity(style.inside);
  }

  // Hide structures, by their numbers, in the planes and in space; all others are shown.
  setHidden(numbers) {
    this.hidden = new Set(numbers);
    const colours = drawingColours(this.colours, this.hidden);
    this.planes.setDrawColormap(colours);
    if (this.solid?.volumes.length) this.solid.setDrawColormap(colours);
  }

  setPlane(name) {
    this.plane = name;
    const { clientWidth, clientHeight } = this.planes.canvas;
    const layout = PLANES[name][clientWidth > clientHeight ? "wide" : "narrow"];
    this.planes.setCustomLayout(layout.map(([sliceType, position]) => ({ sliceType, position })));
  }

  get position() {
    return [...this.planes.frac2vox(this.planes.scene.crosshairPos)];
  }

  get hu() {
    const [i, j, k] = this.position;
    return this.planes.volumes.length ? this.planes.volumes[0].getValue(i, j, k) : NaN;
  }

  goTo(voxel) {
    const nv = this.planes;
    nv.scene.crosshairPos = nv.vox2frac(voxel.map((v, a) => Math.min(this.mask.dims[a] - 1, Math.max(0, v))));
    nv.createOnLocationChange();
    nv.drawScene();
  }

  step(axis, by) {
    const voxel = this.position;
    voxel[axis] += by;
    this.goTo(voxel);
  }

  zoom(factor) {
    const pan = this.planes.scene.pan2Dxyzmm;
    const zoom = Math.min(12, Math.max(0.5, pan[3] * factor));
    this.planes.setPan2Dxyzmm(factor === 0 ? [0, 0, 0, 1] : [pan[0], pan[1], pan[2], zoom]);
  }

  // What lies under a point of the canvas, in CSS pixels: the axis that its plane is across, and the voxel there,
  // fractions allowed. null beside the planes.
  under(x, y) {
    const nv = this.planes;
    const scale = nv.uiData.dpr || 1;
    for (let tile = 0; tile < nv.screenSlices.length; tile++) {
      const plane = nv.screenSlices[tile].axCorSag;
      if (plane > 2) continue;
      const frac = nv.screenXY2TextureFrac(x * scale, y * scale, tile, true);
      if (frac[0] < 0) continue;
      const axis = AXIS_OF_PLANE[plane];
      const voxel = this.mask.dims.map((n, a) => frac[a] * n - 0.5);
      voxel[axis] = this.position[axis];
      return { axis, voxel, tile };
    }
    return null;
  }

  // How many CSS pixels a millimetre takes at a point.
  pixelsPerMm(x, y) {
    const here = this.under(x, y);
    for (const step of [20, -20]) {
      const there = this.under(x + step, y);
      if (!here || !there || here.tile !== there.tile) continue;
      const mm = Math.hypot(...here.voxel.map((v, a) => (v - there.voxel[a]) * this.mask.spacing[a]));
      if (mm > 0) return Math.abs(step) / mm;
    }
    return 0;
  }

  // Where the middle of a voxel lies on the canvas, in CSS pixels, in a plane across an axis; null if it is not shown.
  shownAt(voxel, axis) {
    const nv = this.planes;
    const scale = nv.uiData.dpr || 1;
    const tile = nv.screenSlices.findIndex((slice) => AXIS_OF_PLANE[slice.axCorSag] === axis);
    if (tile < 0) return null;
    const [left, top, width, height] = nv.screenSlices[tile].leftTopWidthHeight;
    const [a, b] = [0, 1, 2].filter((other) => other !== axis);
    // The planes are upright, so two points tell where all others are.
    const at = (px, py) => nv.screenXY2TextureFrac(px, py, tile, false);
    const first = at(left + width * 0.25, top + height * 0.25);
    const second = at(left + width * 0.75, top + height * 0.75);
    const place = (other, from, length) => {
      const wanted = (voxel[other] + 0.5) / this.mask.dims[other];
      return from + length * (0.25 + (0.5 * (wanted - first[other])) / (second[other] - first[other]));
    };
    return [place(a, left, width) / scale, place(b, top, height) / scale];
  }
}

// NiiVue's table of colours for the numbers of structures; 0 is nothing, and what is hidden has no opacity.
function drawingColours(colours, hidden) {
  const all = [[0, 0, 0], ...colours];
  return {
    R: all.map((c) => c[0]),
    G: all.map((c) => c[1]),
    B: all.map((c) => c[2]),
    A: all.map((_, n) => (n && !hidden.has(n) ? 255 : 0)),
    labels: all.map((_, n) => String(n)),
  };
}
