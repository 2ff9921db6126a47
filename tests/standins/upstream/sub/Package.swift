// swift-tools-version: 6.0

import PackageDescription

let package = Package(
  name: "metal-flash-attention",
  platforms: [.macOS(.v15)],
  products: [.library(name: "FlashAttention", targets: ["FlashAttention"])],
  targets: [
    .target(name: "FlashAttention", resources: [.copy("GEMM/Quantized.metal")])
  ]
)
