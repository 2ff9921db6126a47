// swift-tools-version: 6.0

import PackageDescription

// The overlay's own Swift files as a package, so that they can be tested without upstream. The build
// does not use this manifest: it copies Sources/ into the pinned tree (see overlay.toml). Linux has
// no Metal; there the files are held against the stand-in under tests/standins/.
#if os(Linux)
  let dependencies: [Package.Dependency] = [
    .package(path: "../../tests/standins/metal-swift")
  ]
  let metal: [Target.Dependency] = [
    .product(name: "MetalStandins", package: "metal-swift")
  ]
#else
  let dependencies: [Package.Dependency] = []
  let metal: [Target.Dependency] = []
#endif

let package = Package(
  name: "overlay",
  platforms: [.macOS(.v15)],
  dependencies: dependencies,
  targets: [
    .target(
      name: "Overlay",
      dependencies: metal,
      path: ".",
      exclude: ["Tests", "overlay.toml"],
      sources: ["Sources", "Standins"]
    ),
    // Stores one library in a cache: what the tests run several times at once.
    .executableTarget(
      name: "ShaderStorer", dependencies: ["Overlay"], path: "Tests/ShaderStorer"),
    .testTarget(
      name: "OverlayTests", dependencies: ["Overlay", "ShaderStorer"] + metal,
      path: "Tests/OverlayTests"),
  ]
)
