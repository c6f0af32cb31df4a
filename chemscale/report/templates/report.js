"use strict";
(function () {
  const DATA = JSON.parse(document.getElementById("report-data").textContent);
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // nothing on this page may be sent anywhere: Plotly's upload is off and has no address
  const SHARING = ["sendChartToCloud", "sendDataToCloud", "editInChartStudio"];
  const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false, showEditInChartStudio: false,
                   plotlyServerURL: "", modeBarButtonsToRemove: SHARING, displayModeBar: "hover",
                   modeBarButtonsToAdd: [{ name: "Download as SVG", title: "Download as SVG", icon: { width: 24, height: 24, path: "M4 4h16v10H4z M11 15h2v4h3l-4 4-4-4h3z" },
                     click: (el) => Plotly.downloadImage(el, { format: "svg", filename: el.id || "figure" }) }] };
  const TYPES = { f4: Float32Array, u2: Uint16Array, i4: Int32Array };

  // text from catalogues reaches Plotly only through this: Plotly reads a little HTML
  const plain = (t) => String(t).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function decode(packed) {
    const raw = atob(packed.data), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new TYPES[packed.dtype](bytes.buffer);
  }

  function webgl() {
    try {
      const c = document.createElement("canvas");
      return !!(window.WebGLRenderingContext && (c.getContext("webgl2") || c.getContext("webgl")));
    } catch (e) { return false; }
  }

  /* ---- theme ---- */
  function themed() {
    const grid = css("--grid"), ink = css("--ink");
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: ink, tickcolor: ink };
    return { modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: ink }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "system-ui, sans-serif", size: 13 },
             hoverlabel: { bgcolor: css("--panel"), font: { color: ink }, bordercolor: css("--rule") }, axis };
  }
  const BAND = 36;                                       // above every plot: room of the toolbar, which touch screens show always
  const narrow = () => window.innerWidth < 560;
  function fitted(layout) {                              // a legend of several lines has no place above a narrow plot
    if (!narrow()) return layout;
    const out = Object.assign({}, layout, { margin: Object.assign({}, layout.margin, { r: 6 }) });
    if (layout.legend && layout.legend.orientation === "h") {
      out.legend = Object.assign({}, layout.legend, { y: -0.2, yanchor: "top", x: 0, font: { size: 11 } });
      out.height = (layout.height || 420) + 60;
      out.margin = Object.assign({}, out.margin, { b: Math.max(110, (layout.margin && layout.margin.b) || 0) });
      if (out.xaxis && out.xaxis.tickangle) { out.legend.y = -0.45; out.height += 40; }
    }
    return out;
  }
  function withTheme(given) {
    const layout = fitted(given);
    const t = themed(), margin = Object.assign({}, layout.margin, { t: Math.max(BAND, (layout.margin && layout.margin.t) || 0) });
    const out = Object.assign({}, layout, { margin, modebar: t.modebar, paper_bgcolor: t.paper_bgcolor, plot_bgcolor: t.plot_bgcolor, font: t.font, hoverlabel: t.hoverlabel });
    for (const key of Object.keys(out)) if (/^[xy]axis\d*$/.test(key)) out[key] = Object.assign({}, t.axis, key[0] === "y" ? { automargin: true } : {}, out[key]);
    return out;
  }
  const drawn = new Set();
  function retheme() {
    const t = themed();
    for (const id of drawn) {
      const el = typeof id === "string" ? $(id) : id;
      const update = { modebar: t.modebar, paper_bgcolor: t.paper_bgcolor, plot_bgcolor: t.plot_bgcolor, "font.color": t.font.color, hoverlabel: t.hoverlabel };
      for (const key of Object.keys(el.layout)) if (/^[xy]axis\d*$/.test(key)) {
        update[key + ".gridcolor"] = t.axis.gridcolor; update[key + ".zerolinecolor"] = t.axis.zerolinecolor;
        update[key + ".linecolor"] = t.axis.linecolor; update[key + ".tickcolor"] = t.axis.tickcolor;
      }
      Plotly.relayout(el, update);
    }
  }
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    retheme();
  });

  /* ---- charts made in Python: drawn when they come near the screen, all of them before printing ---- */
  const later = new Map();
  function drawStatic(el) {
    const make = later.get(el);
    if (!make) return;
    later.delete(el);
    make();
    drawn.add(el);
  }
  const watch = new IntersectionObserver((entries) => {
    for (const e of entries) if (e.isIntersecting) { watch.unobserve(e.target); drawStatic(e.target); }
  }, { rootMargin: "300px" });
  function defer(el, make) { later.set(el, make); watch.observe(el); }
  for (const [id, fig] of Object.entries(DATA.charts)) {
    const el = $("chart-" + id);
    if (el) defer(el, () => Plotly.newPlot(el, fig.data, withTheme(fig.layout), CONFIG));
  }
  window.addEventListener("beforeprint", () => { for (const el of [...later.keys()]) drawStatic(el); });

  /* ---- sortable tables ---- */
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("th button").forEach((button, column) => button.addEventListener("click", () => {
      const th = button.parentElement, up = th.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach((h) => h.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => { const t = row.cells[column].textContent, v = parseFloat(t); return isNaN(v) ? t : v; };
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = value(a), y = value(b);
        return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
      });
      table.tBodies[0].append(...rows);
    }));
  }

  /* ---- explore ---- */
  drawStatic($("chart-rates"));                          // what is in sight is painted first, then thousands of stars are unpacked
  setTimeout(() => {
    if (DATA.explore) explore(DATA.explore);
    if (DATA.anomalies) anomalies(DATA.anomalies);
  }, 0);

  function explore(E) {
    const n = E.star_id.length, K = E.n_components;
    const coords = decode(E.coords), features = decode(E.features), F = E.n_features;
    const columns = {};                                  // name -> {title, values}
    const featureName = (f) => E.feature_names ? "latent " + E.feature_names[f] : "feature " + (f + 1);
    for (let f = 0; f < Math.min(F, 10); f++) columns[featureName(f)] = { title: E.feature_names ? featureName(f) : E.feature + " " + (f + 1), values: Float32Array.from({ length: n }, (_, i) => features[i * F + f]) };
    for (const c of E.columns) columns[c.name] = { title: c.title, values: decode(c.values) };
    const member = E.cluster.map((c) => c !== "");
    const index = new Map(E.star_id.map((s, i) => [s, i]));
    const gl = webgl(), kind = gl ? "scattergl" : "scatter";
    const field = [], members = [];
    for (let i = 0; i < n; i++) (member[i] ? members : field).push(i);
    const shownField = gl ? field : field.slice(0, 2000);

    function fill(select, names, chosen) {
      for (const name of names) { const o = document.createElement("option"); o.value = name; o.textContent = columns[name] ? columns[name].title || name : name; select.append(o); }
      if (names.includes(chosen)) select.value = chosen;
    }
    const names = Object.keys(columns), labelled = E.columns.map((c) => c.name);
    const first = (list, other) => list.find((x) => names.includes(x)) || other;
    fill($("x-axis"), names, featureName(0));
    fill($("y-axis"), names, featureName(Math.min(1, F - 1)));
    fill($("colour"), names, first(["fe_h", "teff"], names[0]));
    fill($("n-features"), Array.from({ length: F }, (_, i) => String(i + 1)), String(E.n_kept));
    const VIEWS = [["[α/M] against [Fe/H]", "fe_h", "alpha_m"], ["Kiel diagram", "teff", "logg"], ["sky", "ra", "dec"], ["abundances from latents", "metal from latents (dex)", "alpha from latents (dex)"],
                   ["[C/Fe] against [Fe/H]", "fe_h", "c_fe"], ["signal-to-noise and velocity", "snr", "radial_velocity"]].filter((v) => names.includes(v[1]) && names.includes(v[2]));
    if (!VIEWS.length) VIEWS.push(["first two columns", names[0], names[Math.min(1, names.length - 1)]]);
    const view = () => VIEWS[Math.max(0, $("view").selectedIndex)];
    for (const v of VIEWS) { const o = document.createElement("option"); o.textContent = v[0]; $("view").append(o); }
    const backwards = (name, axis) => (axis === "x" && (name === "teff" || name === "ra")) || (axis === "y" && name === "logg");
    const hover = E.star_id.map((s, i) => plain(s) + (member[i] ? "<br>" + plain(E.cluster[i]) : ""));

    function range(v) {                                  // the central 98 %: one odd label must not wash out the colours
      const ok = [...v].filter(Number.isFinite).sort((a, b) => a - b);
      return ok.length ? [ok[Math.floor(0.01 * (ok.length - 1))], ok[Math.ceil(0.99 * (ok.length - 1))]] : [0, 1];
    }
    const pick = (v, rows) => rows.map((i) => v[i]);
    function traces(x, y, bar) {
      const colour = columns[$("colour").value], [lo, hi] = range(colour.values);
      const scale = { colorscale: "Viridis", cmin: lo, cmax: hi };
      const marker = (rows) => Object.assign({ color: pick(colour.values, rows) }, scale);
      return [
        { type: kind, mode: "markers", name: "field", x: pick(x, shownField), y: pick(y, shownField), customdata: shownField, text: pick(hover, shownField), hovertemplate: "%{text}<extra></extra>",
          marker: Object.assign(marker(shownField), { size: 4, opacity: 0.75, showscale: bar, colorbar: { title: { text: colour.title, side: "right" }, thickness: 12, outlinewidth: 0 } }) },
        { type: kind, mode: "markers", name: "cluster members", x: pick(x, members), y: pick(y, members), customdata: members, text: pick(hover, members), hovertemplate: "%{text}<extra></extra>",
          marker: Object.assign(marker(members), { size: 8, symbol: "diamond", line: { width: 1.2, color: css("--warm") } }) },
        { type: kind, mode: "markers", name: "chosen", x: [], y: [], hoverinfo: "skip", showlegend: false, marker: { size: 15, symbol: "circle-open", color: css("--bad"), line: { width: 2.5, color: css("--bad") } } },
        { type: kind, mode: "markers", name: "nearest", x: [], y: [], hoverinfo: "skip", showlegend: false, marker: { size: 11, symbol: "square-open", color: css("--ink"), line: { width: 1.5, color: css("--ink") } } },
      ];
    }
    const panels = [{ id: "scatter", xn: () => $("x-axis").value, yn: () => $("y-axis").value, bar: false },
                    { id: "scatter-labels", xn: () => view()[1], yn: () => view()[2], bar: true, density: true }];
    for (const p of panels) { p.x = () => columns[p.xn()]; p.y = () => columns[p.yn()]; }
    let chosen = -1, nearest = [], drawnPanels = false;
    function layoutFor(p) {
      const x = p.x(), y = p.y(), rx = pad(x.values), ry = pad(y.values);
      if (backwards(p.xn(), "x")) rx.reverse();
      if (backwards(p.yn(), "y")) ry.reverse();
      return withTheme({ margin: { l: 60, r: 10, t: 30, b: 50 }, height: 430, dragmode: "pan", hovermode: "closest", uirevision: x.title + y.title,
        xaxis: { title: { text: x.title }, zeroline: false, range: rx }, yaxis: { title: { text: y.title }, zeroline: false, range: ry },
        legend: { orientation: "h", x: 0, y: 1.08 } });
    }
    function pad(values) {
      const ok = [...values].filter(Number.isFinite).sort((a, b) => a - b);
      if (!ok.length) return [0, 1];
      const at = (q) => ok[Math.round(q * (ok.length - 1))], reach = 6 * (at(0.84) - at(0.16)) || Infinity;   // no outlier may flatten a panel
      const lo = Math.max(at(0.005), at(0.5) - reach), hi = Math.min(at(0.995), at(0.5) + reach), m = 0.08 * (hi - lo) || 0.5;
      return [lo - m, hi + m];
    }
    function drawPanels() {
      for (const p of panels) {
        const x = p.x(), y = p.y(), el = $(p.id);
        const data = traces(x.values, y.values, p.bar);
        if (p.density && field.length >= 800) data.push({ type: "histogram2dcontour", x: pick(x.values, field), y: pick(y.values, field), ncontours: 8, showscale: false, showlegend: false, hoverinfo: "skip",
          contours: { coloring: "none" }, line: { color: css("--soft"), width: 0.8 }, nbinsx: 40, nbinsy: 40 });
        Plotly.react(el, data, layoutFor(p), Object.assign({ scrollZoom: false }, CONFIG));
        drawn.add(el);
        if (!drawnPanels) {
          el.on("plotly_click", (e) => { if (e.points.length) choose(e.points[0].customdata); });
          el.on("plotly_selected", (e) => select(e ? new Set(e.points.map((q) => q.customdata)) : null));
        }
      }
      drawnPanels = true;
      mark();
    }
    let selected = null;
    function select(rows) {                              // lasso in one panel, seen in both
      selected = rows;
      $("save-csv").textContent = rows ? "CSV of " + rows.size + " selected" : "CSV of all stars here";
      const one = (list) => rows ? list.map((i, k) => rows.has(i) ? k : -1).filter((k) => k >= 0) : null;
      for (const p of panels) Plotly.restyle($(p.id), { selectedpoints: [one(shownField), one(members)] }, [0, 1]);
    }
    function mark() {
      for (const p of panels) {
        const x = p.x().values, y = p.y().values, near = nearest.map((s) => s.i);
        Plotly.restyle($(p.id), { x: [chosen < 0 ? [] : [x[chosen]], near.map((i) => x[i])], y: [chosen < 0 ? [] : [y[chosen]], near.map((i) => y[i])] }, [2, 3]);
      }
    }
    for (const id of ["x-axis", "y-axis", "colour", "view"]) $(id).addEventListener("change", drawPanels);
    $("y-axis").addEventListener("change", () => drawClusters());
    function table(rows) {                               // CSV of stars: identifiers, cluster, every column of the page
      const quote = (t) => /[",\n]/.test(t) ? '"' + t.replace(/"/g, '""') + '"' : t;
      const lines = [["star_id", "cluster", ...names].map(quote).join(",")];
      for (const i of rows) lines.push([E.star_id[i], E.cluster[i], ...names.map((c) => { const v = columns[c].values[i]; return Number.isFinite(v) ? String(v) : ""; })].map(quote).join(","));
      return lines.join("\n") + "\n";
    }
    const chosenRows = () => selected ? [...selected].sort((a, b) => a - b) : E.star_id.map((_, i) => i);
    $("save-csv").addEventListener("click", () => {
      const link = document.createElement("a"), url = URL.createObjectURL(new Blob([table(chosenRows())], { type: "text/csv" }));
      link.href = url; link.download = "stars.csv"; link.click(); setTimeout(() => URL.revokeObjectURL(url), 1000);
    });

    /* ---- features against labels; members against the field ---- */
    const labels = E.columns.filter((c) => !/^latent /.test(c.name)).map((c) => c.name), shownFeatures = Object.keys(columns).slice(0, Math.min(F, 10));
    function pearson(a, b) {
      let m = 0, sa = 0, sb = 0, saa = 0, sbb = 0, sab = 0;
      for (const i of field) { const x = a[i], y = b[i]; if (Number.isFinite(x) && Number.isFinite(y)) { m++; sa += x; sb += y; } }
      if (m < 10) return null;
      sa /= m; sb /= m;
      for (const i of field) { const x = a[i] - sa, y = b[i] - sb; if (Number.isFinite(x) && Number.isFinite(y)) { saa += x * x; sbb += y * y; sab += x * y; } }
      return saa > 0 && sbb > 0 ? sab / Math.sqrt(saa * sbb) : null;
    }
    defer($("heat"), () => {
      const rows = labels.map((l) => shownFeatures.map((f) => pearson(columns[f].values, columns[l].values))), known = rows.map((r) => r.some((v) => v !== null));
      const z = rows.filter((_, k) => known[k]), told = labels.filter((_, k) => known[k]);
      Plotly.newPlot($("heat"), [{ type: "heatmap", x: shownFeatures.map((f) => f.replace("feature ", "").replace("latent ", "")), y: told.map((l) => columns[l].title), z, zmin: -1, zmax: 1, colorscale: [[0, "#0072b2"], [0.5, css("--panel")], [1, "#d55e00"]],
        text: z.map((r) => r.map((v) => v === null ? "" : v.toFixed(2))), texttemplate: narrow() ? "" : "%{text}", xgap: 1, ygap: 1, colorbar: { title: { text: "r", side: "right" }, thickness: 12, outlinewidth: 0 }, hovertemplate: "%{x}, %{y}: r = %{z:.3f}<extra></extra>" }],
        withTheme({ height: 120 + 26 * told.length, margin: { l: 60, r: 10, t: 20, b: 50 }, xaxis: { title: { text: E.feature_names ? "latent" : "feature" }, type: "category" }, yaxis: { automargin: true, autorange: "reversed" } }), CONFIG);
      $("heat").on("plotly_click", (e) => { $("y-axis").value = shownFeatures[e.points[0].pointIndex[1]]; $("x-axis").value = told[e.points[0].pointIndex[0]]; drawPanels(); drawClusters(); });
    });
    function drawClusters() {
      if (!members.length) { $("members-part").hidden = true; return; }
      const c = columns[$("y-axis").value], sorted = field.map((i) => c.values[i]).filter(Number.isFinite).sort((a, b) => a - b), at = (q) => sorted[Math.round(q * (sorted.length - 1))];
      const group = {};
      for (const i of members) if (Number.isFinite(c.values[i])) (group[E.cluster[i]] = group[E.cluster[i]] || []).push(i);
      const mean = (rows) => rows.reduce((s, i) => s + c.values[i], 0) / rows.length, order = Object.keys(group).sort((a, b) => mean(group[a]) - mean(group[b])), rows = order.flatMap((g) => group[g]);
      const cut = (t) => plain(t.length > 18 ? t.slice(0, 17) + "…" : t);
      const shapes = sorted.length ? [[0.025, 0.975], [0.16, 0.84]].map((q) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: at(q[0]), y1: at(q[1]), fillcolor: css("--soft"), opacity: 0.13, line: { width: 0 }, layer: "below" })) : [];
      Plotly.react($("members"), [{ type: "scatter", mode: "markers", x: rows.map((i) => cut(E.cluster[i])), y: rows.map((i) => c.values[i]), customdata: rows, text: rows.map((i) => hover[i]), hovertemplate: "%{text}<extra></extra>", marker: { size: 7, symbol: "diamond", color: css("--warm") } }],
        withTheme({ height: 400, margin: { l: 60, r: 10, t: 20, b: 110 }, shapes, showlegend: false, xaxis: { tickangle: -45, automargin: true, type: "category" }, yaxis: { title: { text: c.title }, range: pad(c.values) } }), CONFIG);
      if (!drawn.has($("members"))) $("members").on("plotly_click", (e) => choose(e.points[0].customdata));
      drawn.add($("members"));
    }
    if (members.length) defer($("members"), drawClusters); else $("members-part").hidden = true;
    $("n-features").addEventListener("change", () => chosen >= 0 && choose(chosen));

    function neighbours(i, count) {
      const kept = parseInt($("n-features").value, 10), all = [];
      for (let j = 0; j < n; j++) {
        if (j === i) continue;
        let d = 0;
        for (let f = 0; f < kept; f++) { const t = features[i * F + f] - features[j * F + f]; d += t * t; }
        if (Number.isFinite(d)) all.push({ i: j, d: Math.sqrt(d) });
      }
      return all.sort((a, b) => a.d - b.d).slice(0, count);
    }

    const S = E.spectra ? { wave: decode(E.spectra.wavelength), mean: E.spectra.mean && decode(E.spectra.mean), basis: E.spectra.basis && decode(E.spectra.basis), rows: new Map(E.spectra.rows.map((r, k) => [r, k])), flux: decode(E.spectra.flux) } : null;
    function observed(i) {
      if (!S || !S.rows.has(i)) return null;
      const P = S.wave.length, k = S.rows.get(i), { low, step } = E.spectra;
      return Array.from({ length: P }, (_, p) => { const q = S.flux[k * P + p]; return q === 65535 ? null : low + step * q; });
    }
    function rebuilt(i) {
      if (!S.basis) return null;
      const P = S.wave.length, out = Float32Array.from(S.mean);
      for (let k = 0; k < K; k++) { const z = coords[i * K + k]; for (let p = 0; p < P; p++) out[p] += z * S.basis[k * P + p]; }
      return [...out].map((v) => Number.isFinite(v) ? v : null);
    }
    const lines = S && E.spectra.lines ? E.spectra.lines : [];
    if (S) {
      const seenOf = {};
      for (const [species, w] of lines) seenOf[species] = seenOf[species] || w;
      for (const species of Object.keys(seenOf).sort()) { const o = document.createElement("option"); o.value = seenOf[species]; o.textContent = species + " " + seenOf[species].toFixed(0) + " Å"; $("region").append(o); }
    }
    const near = () => $("region").value ? parseFloat($("region").value) : null;
    function drawSpectrum() {
      if (!S || chosen < 0) return;
      const wave = [...S.wave], data = [], line = (name, y, colour, extra) => data.push(Object.assign({ type: "scatter", mode: "lines", name: plain(name), x: wave, y, connectgaps: false, line: { width: 1, color: colour }, hovertemplate: "%{x:.1f} Å  %{y:.3f}<extra></extra>" }, extra));
      const seen = observed(chosen), made = S.basis ? rebuilt(chosen) : null;
      if (seen) line(E.star_id[chosen] + " observed", seen, css("--soft"));
      if (made) line(E.star_id[chosen] + " from " + K + " components", made, css("--accent"));
      let under = "observed − components", rest = seen && made ? seen.map((v, p) => v === null || made[p] === null ? null : v - made[p]) : null;
      if (nearest.length) {
        const other = nearest[shown % nearest.length].i, seenOther = observed(other), theirs = seenOther || (S.basis ? rebuilt(other) : null), mine = seenOther && seen ? seen : made || seen;
        if (theirs) {
          line(E.star_id[other] + (seenOther ? " observed" : " from " + K + " components"), theirs, css("--warm"), { opacity: 0.85 });
          if (mine) { under = "star − sibling"; rest = mine.map((v, p) => v === null || theirs[p] === null ? null : v - theirs[p]); }
        }
      }
      if (rest) line(under, rest, css("--ink"), { yaxis: "y2", showlegend: false });
      const w = near(), P = wave.length, span = w === null ? [wave[0], wave[P - 1]] : [w - 0.004 * w, w + 0.004 * w];
      const inside = lines.filter((l) => l[1] > span[0] && l[1] < span[1]), most = narrow() ? 6 : 24, marks = inside.filter((_, k) => k % Math.ceil(inside.length / most || 1) === 0);
      const shapes = marks.map((l) => ({ type: "line", x0: l[1], x1: l[1], yref: "paper", y0: 0, y1: 1, line: { width: 0.7, dash: "dot", color: css("--rule") }, layer: "below" }));
      const annotations = marks.map((l) => ({ x: l[1], yref: "paper", y: 0.995, text: l[0], textangle: -90, showarrow: false, yanchor: "top", font: { size: 9, color: css("--soft") } }));
      const shownPixels = (y) => y.filter((v, p) => v !== null && wave[p] >= span[0] && wave[p] <= span[1]), flux = data.filter((d) => !d.yaxis).flatMap((d) => shownPixels(d.y));
      const range = flux.length ? pad(flux) : [0, 1.2];
      range[1] += 0.18 * (range[1] - range[0]);
      Plotly.react($("spectrum"), data, withTheme({ margin: { l: 60, r: 10, t: 30, b: 100 }, height: 520, hovermode: "closest", uirevision: "spectrum" + w, legend: { orientation: "h", x: 0, y: -0.21, yanchor: "top" }, shapes, annotations,
        xaxis: { title: { text: E.spectra.title }, exponentformat: "none", anchor: rest ? "y2" : "y", range: span }, yaxis: { title: { text: "normalised flux" }, domain: rest ? [0.33, 1] : [0, 1], range },
        yaxis2: { title: { text: under }, domain: [0, 0.27], nticks: 4, range: rest && shownPixels(rest).length ? pad(shownPixels(rest)) : [-1, 1] } }), CONFIG);
      drawn.add($("spectrum"));
    }
    $("region").addEventListener("change", drawSpectrum);
    let shown = 0;
    const show = (v, digits) => Number.isFinite(v) ? v.toFixed(digits).replace(/^-(0\.?0*)$/, "$1") : "–";
    const tableColumns = ["fe_h", "alpha_m", "c_fe", "teff", "logg", "snr", "radial_velocity", "extinction"].filter((c) => columns[c]).slice(0, 7);
    function drawTable() {
      const table = $("siblings"), head = document.createElement("tr");
      for (const text of ["star", "distance", "cluster", ...tableColumns.map((c) => columns[c].title)]) { const th = document.createElement("th"); th.scope = "col"; th.textContent = text; head.append(th); }
      table.tHead.replaceChildren(head);
      table.tBodies[0].replaceChildren(...[{ i: chosen, d: 0 }, ...nearest].map((s, rank) => {
        const row = document.createElement("tr"), cell = (text) => { const td = document.createElement("td"); td.textContent = text; row.append(td); return td; };
        const button = document.createElement("button");
        button.className = "starlink"; button.type = "button"; button.textContent = E.star_id[s.i];
        button.title = rank ? "overlay this star's spectrum; press twice to choose it" : "the chosen star";
        button.addEventListener("click", () => { if (rank && shown !== rank - 1) { shown = rank - 1; drawSpectrum(); } else if (rank) choose(s.i); });
        cell("").append(button);
        cell(rank ? show(s.d, 3) : "–"); cell(E.cluster[s.i] || "");
        for (const c of tableColumns) { const v = columns[c].values[s.i]; cell(show(v, Math.abs(v) >= 100 ? 0 : 2)); }
        return row;
      }));
    }
    function choose(i) {
      chosen = i; nearest = neighbours(i, 10); shown = 0;
      $("who").textContent = E.star_id[i] + (member[i] ? ", " + E.cluster[i] : ", field") + (S && !S.rows.has(i) ? "; its observed spectrum is not embedded" + (S.basis ? ", the curve is rebuilt from its coordinates" : "") : "");
      $("star").value = E.star_id[i];
      mark(); drawSpectrum(); drawTable();
    }
    $("star").addEventListener("input", () => {
      const text = $("star").value.trim(), options = [];
      if (index.has(text)) { choose(index.get(text)); return; }
      for (const id of E.star_id) { if (text && id.toLowerCase().includes(text.toLowerCase())) options.push(id); if (options.length > 20) break; }
      $("star-list").replaceChildren(...options.map((id) => { const o = document.createElement("option"); o.value = id; return o; }));
    });
    $("star").addEventListener("keydown", (e) => {
      if (e.key !== "Enter") return;
      const text = $("star").value.trim().toLowerCase(), hit = E.star_id.findIndex((id) => text && id.toLowerCase().includes(text));
      if (hit >= 0) choose(hit); else $("who").textContent = "No star in this page has an identifier containing that text.";
    });
    defer($("scatter"), () => { drawPanels(); choose(members.length ? members[0] : 0); });
    window.chemscaleReport = { csv: () => table(chosenRows()), select, choose: (id) => choose(index.get(id)), get chosen() { return E.star_id[chosen]; }, get nearest() { return nearest.map((s) => E.star_id[s.i]); } };
  }

  function anomalies(A) {
    const wave = [...decode(A.wavelength)], P = wave.length, flux = decode(A.flux), model = decode(A.model);
    for (const el of document.querySelectorAll(".anomaly")) {
      const k = parseInt(el.dataset.index, 10), part = (v) => [...v.subarray(k * P, (k + 1) * P)].map((x) => Number.isFinite(x) ? x : null);
      const seen = part(flux), made = part(model), line = (name, y, colour, axis) => ({ type: "scatter", mode: "lines", name, x: wave, y, line: { width: 1, color: colour }, yaxis: axis, hovertemplate: "%{x:.1f} Å  %{y:.3f}<extra></extra>" });
      defer(el, () => Plotly.newPlot(el, [line("observed", seen, css("--soft"), "y"), line("reconstruction", made, css("--accent"), "y"),
        line("residual", seen.map((v, p) => v === null || made[p] === null ? null : v - made[p]), css("--warm"), "y2")],
        withTheme({ height: 360, margin: { l: 76, r: 10, t: 30, b: 50 }, legend: { orientation: "h", x: 0, y: 1.12 }, xaxis: { title: { text: A.title }, anchor: "y2", exponentformat: "none" },
          yaxis: { title: { text: "flux" }, domain: [0.36, 1] }, yaxis2: { title: { text: "residual" }, domain: [0, 0.28], nticks: 4 } }), CONFIG));
    }
  }
})();
