// swift-tools-version: 6.0

import PackageDescription

let package = Package(
  name: "miniature",
  platforms: [.macOS(.v15)],
  products: [.library(name: "MFAFFI", type: .dynamic, targets: ["MFAFFI"])],
  dependencies: [.package(path: "./metal-flash-attention")],
  targets: [
    .target(
      name: "MFABridge",
      dependencies: [.product(name: "FlashAttention", package: "metal-flash-attention")],
      publicHeadersPath: "include",
      swiftSettings: [.unsafeFlags(["-O"])]
    ),
    .target(
      name: "MFAFFI", dependencies: ["MFABridge"], publicHeadersPath: "include",
      cSettings: [.unsafeFlags(["-O3"])]
    ),
  ]
)
