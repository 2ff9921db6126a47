// A stand-in: the build writes this constant from the pinned tree's own header (overlay.toml).
let embeddedBFloatHeader = "// stand-in for the bfloat header\n"
