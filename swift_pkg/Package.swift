// swift-tools-version: 6.0

import PackageDescription

let package = Package(
  name: "MFAFFI",
  products: [
    .library(name: "MFAFFI", type: .dynamic, targets: ["MFAFFI"])
  ],
  targets: [
    .target(
      name: "MFAFFI",
      publicHeadersPath: "include",
      cSettings: [
        // Never -ffast-math: infinities and NaN have a meaning here.
        .unsafeFlags(["-O3", "-fvisibility=hidden"])
      ],
      linkerSettings: [
        .linkedLibrary("m", .when(platforms: [.linux])),
        .linkedLibrary("pthread", .when(platforms: [.linux])),
      ]
    ),
    .testTarget(name: "MFAFFITests", dependencies: ["MFAFFI"]),
  ]
)
