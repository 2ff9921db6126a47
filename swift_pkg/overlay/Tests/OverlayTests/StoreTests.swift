import Foundation
import Metal
import XCTest

@testable import Overlay

/// Shader pack, user's cache, and the offline compiler that fills it.
final class StoreTests: OverlayTestCase {
  // MARK: - Pack

  func testAPackHitCompilesNothing() throws {
    let key = try addToPack(Self.eventSource)
    let device = device(rejecting: "all")
    let noted = ShaderOrigins()
    _ = try ShaderLibraries(policy: policy(), origins: noted)
      .library(device: device, source: Self.eventSource, options: options())
    XCTAssertEqual(device.offered.count, 0)
    XCTAssertEqual(device.loaded.map(\.lastPathComponent), ["a.metallib"])
    let origin = try origins(noted)[0]
    XCTAssertEqual(origin.origin, .pack)
    XCTAssertEqual(origin.key, key)
  }

  func testAPackOfThePlainVariantServesToo() throws {
    try addToPack(Self.eventSource, variant: .plain)
    let noted = ShaderOrigins()
    _ = try ShaderLibraries(policy: policy(), origins: noted)
      .library(device: device(rejecting: "all"), source: Self.eventSource, options: options())
    XCTAssertEqual(try origins(noted)[0].variant, .plain)
  }

  func testAnUnusablePackEntryIsPassedOver() throws {
    let cases: [(String, () throws -> Void)] = [
      ("damaged", { try self.addToPack(Self.simpleSource, damage: true) }),
      ("needs macOS 26.0", { try self.addToPack(Self.simpleSource, minimumOS: "26.0") }),
      ("not a plain file name", { try self.addToPack(Self.simpleSource, file: "../a.metallib") }),
      ("pack: ", { try Data("{".utf8).write(to: self.pack.appendingPathComponent("index.json")) }),
      (
        "format 9",
        {
          try Data(#"{"format": 9, "libraries": {}}"#.utf8)
            .write(to: self.pack.appendingPathComponent("index.json"))
        }
      ),
    ]
    for (reason, make) in cases {
      try make()
      let device = device()
      let noted = ShaderOrigins()
      _ = try ShaderLibraries(policy: policy(), origins: noted)
        .library(device: device, source: Self.simpleSource, options: options())
      let origin = try origins(noted)[0]
      XCTAssertEqual(origin.origin, .runtime, reason)
      XCTAssertTrue(origin.attempts.joined().contains(reason), "\(reason): \(origin.attempts)")
      XCTAssertEqual(device.loaded.count, 0)
    }
  }

  // MARK: - xcrun and the cache

  func testXcrunFillsTheCacheAndTheCacheServes() throws {
    var policy = policy()
    policy.xcrun = try fakeXcrun(Self.working)
    let noted = ShaderOrigins()
    _ = try ShaderLibraries(policy: policy, origins: noted)
      .library(device: device(rejecting: "all"), source: Self.eventSource, options: options())
    XCTAssertEqual(try origins(noted)[0].origin, .xcrun)
    XCTAssertEqual(try origins(noted)[0].attempts.count, 2)

    policy.xcrun = nil
    _ = try ShaderLibraries(policy: policy, origins: noted)
      .library(device: device(rejecting: "all"), source: Self.eventSource, options: options())
    XCTAssertEqual(try origins(noted)[1].origin, .cache)
    XCTAssertEqual(try leftovers(), [])
  }

  func testTheCompilerGetsFlagsThatItAccepts() throws {
    var policy = policy()
    policy.xcrun = try fakeXcrun(Self.working)
    let safe = options()
    safe.mathMode = .safe
    _ = try ShaderLibraries(policy: policy, origins: ShaderOrigins())
      .library(device: device(rejecting: "all"), source: Self.simpleSource, options: safe)
    XCTAssertTrue(
      calls().contains(
        "-sdk macosx metal -mmacosx-version-min=15.0 -std=metal3.2 -fmetal-math-mode=safe "
          + "-fmetal-math-fp32-functions=fast -c"),
      calls())
    XCTAssertFalse(calls().contains("macos-metal"))
  }

  func testADamagedCacheEntryIsRemovedAndMadeAnew() throws {
    var policy = policy()
    policy.xcrun = try fakeXcrun(Self.working)
    let strict = { self.device(rejecting: "all") }
    _ = try ShaderLibraries(policy: policy, origins: ShaderOrigins())
      .library(device: strict(), source: Self.simpleSource, options: nil)
    let key = ShaderText.key(source: Self.simpleSource, options: ShaderText.settled(nil))
    let file = cache.appendingPathComponent("shaders/\(key)/library.metallib")
    try Data("standin metallib\nother".utf8).write(to: file)

    let noted = ShaderOrigins()
    _ = try ShaderLibraries(policy: policy, origins: noted)
      .library(device: strict(), source: Self.simpleSource, options: nil)
    let origin = try origins(noted)[0]
    XCTAssertEqual(origin.origin, .xcrun)
    XCTAssertTrue(origin.attempts[0].contains("damaged"), "\(origin.attempts)")
    XCTAssertNotNil(try ShaderCache(folder: cache).find(key, on: policy.system))
    XCTAssertEqual(try leftovers(), [])
  }

  func testAnEntryThatTheDeviceRefusesIsRemoved() throws {
    let library = folder.appendingPathComponent("bad.metallib")
    try Data("not a library".utf8).write(to: library)
    let key = ShaderText.key(source: Self.simpleSource, options: ShaderText.settled(nil))
    let store = ShaderCache(folder: cache)
    _ = try store.store(library, as: key, variant: .upstream, compiler: "test")
    let noted = ShaderOrigins()
    _ = try ShaderLibraries(policy: policy(), origins: noted)
      .library(device: device(), source: Self.simpleSource, options: nil)
    XCTAssertEqual(try origins(noted)[0].origin, .runtime)
    XCTAssertNil(try store.find(key, on: policy().system))
  }

  func testProcessesThatStoreTheSameEntryAtOnce() throws {
    let library = folder.appendingPathComponent("some.metallib")
    try Data(repeating: 42, count: 20_000).write(to: library)
    let products = [Bundle(for: Self.self).bundleURL, Bundle.main.bundleURL]
    let storer = products.flatMap { [$0, $0.deletingLastPathComponent()] }
      .map { $0.appendingPathComponent("ShaderStorer") }
      .first { FileManager.default.isExecutableFile(atPath: $0.path) }
    let children = try (0..<4).map { _ in
      let child = Process()
      child.executableURL = try XCTUnwrap(storer)
      child.arguments = [cache.path, "key", library.path, "40"]
      try child.run()
      return child
    }
    for child in children {
      child.waitUntilExit()
      XCTAssertEqual(child.terminationStatus, 0)
    }
    XCTAssertEqual(try leftovers(), [])
  }

  func testAFailingXcrunIsTold() throws {
    try expectFailure(
      of: "echo 'shader.metal:1: error: no' >&2; exit 1",
      containing: ["xcrun (upstream): xcrun metal failed", "shader.metal:1: error: no"])
  }

  func testAHangingXcrunIsEnded() throws {
    let start = Date()
    try expectFailure(of: "exec sleep 600", containing: ["ran longer than"], timeLimit: 0.5)
    XCTAssertLessThan(Date().timeIntervalSince(start), 60)
  }

  func testAnXcrunThatPrintsAMebibyteIsDrained() throws {
    let talk = "head -c 1048576 /dev/zero | tr '\\0' x; head -c 1048576 /dev/zero >&2"
    try expectFailure(of: "\(talk); echo the end; exit 1", containing: ["the end"])
    var policy = policy()
    policy.xcrun = try fakeXcrun("\(talk); \(Self.working)")
    let noted = ShaderOrigins()
    _ = try ShaderLibraries(policy: policy, origins: noted)
      .library(device: device(rejecting: "all"), source: Self.simpleSource, options: nil)
    XCTAssertEqual(try origins(noted)[0].origin, .xcrun)
  }

  func testAnXcrunThatWritesNothingIsAFailure() throws {
    try expectFailure(of: "exit 0", containing: ["metallib wrote no library"])
  }

  func testAnUnwritableCacheCostsNothing() throws {
    try Data().write(to: cache)  // a file where the folder should be
    var policy = policy()
    policy.xcrun = try fakeXcrun(Self.working)
    let noted = ShaderOrigins()
    _ = try ShaderLibraries(policy: policy, origins: noted)
      .library(device: device(rejecting: "all"), source: Self.simpleSource, options: nil)
    XCTAssertEqual(try origins(noted)[0].origin, .xcrun)
  }

  // MARK: - Helpers

  private func expectFailure(
    of body: String, containing parts: [String], timeLimit: TimeInterval = 60
  ) throws {
    var policy = policy()
    policy.xcrun = try fakeXcrun(body)
    policy.timeLimit = timeLimit
    let libraries = ShaderLibraries(policy: policy, origins: ShaderOrigins())
    XCTAssertThrowsError(
      try libraries.library(
        device: device(rejecting: "all"), source: Self.simpleSource, options: nil)
    ) { error in
      for part in parts { XCTAssertTrue("\(error)".contains(part), "\(error)") }
      XCTAssertLessThan("\(error)".utf8.count, 20_000)
    }
    XCTAssertEqual(try leftovers(), [])
  }

  /// Temporary names that something left in the cache.
  private func leftovers() throws -> [String] {
    let shaders = cache.appendingPathComponent("shaders")
    guard FileManager.default.fileExists(atPath: shaders.path) else { return [] }
    return try FileManager.default.contentsOfDirectory(atPath: shaders.path)
      .filter { $0.hasPrefix(".") }
  }
}
