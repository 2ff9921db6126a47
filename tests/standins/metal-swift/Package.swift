// swift-tools-version: 6.0

import PackageDescription

// Stand-ins for the Apple modules that the Metal build imports, so that its Swift code can be
// type-checked and run where there is no Metal. With METAL_STANDIN_COMPILER kernels are executed, on
// the CPU (tests/standins/software_metal).
let package = Package(
  name: "metal-standins",
  products: [
    .library(
      name: "MetalStandins",
      type: .dynamic,
      targets: ["Metal", "MetalPerformanceShaders", "CryptoKit"]
    )
  ],
  targets: [
    .target(name: "Metal"),
    .target(name: "MetalPerformanceShaders", dependencies: ["Metal"]),
    .target(name: "CryptoKit"),
  ],
  swiftLanguageModes: [.v5]
)
