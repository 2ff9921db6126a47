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

  // MARK: - Whose cache it is

  /// Store an entry, spoil the cache, and see that it is not used, told as `reason`, and intact.
  private func refuse(
    _ reason: String, user: uid_t = geteuid(), spoil: (_ shaders: URL) throws -> Void = { _ in }
  ) throws {
    try? FileManager.default.removeItem(at: cache)
    let library = folder.appendingPathComponent("some.metallib")
    try Data("standin metallib\nmask".utf8).write(to: library)
    var store = ShaderCache(folder: cache)
    let kept = try store.store(library, as: "key", variant: .plain, compiler: "test")
    XCTAssertNotNil(try store.find("key", on: policy().system))
    try spoil(cache.appendingPathComponent("shaders"))
    store.user = user
    for attempt in [
      { _ = try store.find("key", on: self.policy().system) },
      { _ = try store.store(library, as: "other", variant: .plain, compiler: "test") },
    ] {
      XCTAssertThrowsError(try attempt(), reason) {
        XCTAssertTrue("\($0)".contains(reason), "\($0) instead of \(reason)")
      }
    }
    store.remove("key")
    XCTAssertTrue(FileManager.default.fileExists(atPath: kept.path), "it is not ours to remove")
  }

  private func open(_ path: URL, to mode: Int) throws {
    try FileManager.default.setAttributes([.posixPermissions: mode], ofItemAtPath: path.path)
  }

  func testACacheThatOthersCanWriteToIsNeitherReadNorWritten() throws {
    try refuse("can be written to by others: chmod go-w") { try self.open($0, to: 0o777) }
    try refuse("can be written to by others") { try self.open($0, to: 0o720) }
    try refuse("can be written to by others") { _ in try self.open(self.cache, to: 0o777) }
    try refuse("cache/shaders: ") {
      let elsewhere = self.folder.appendingPathComponent("elsewhere-\(UUID().uuidString)")
      try FileManager.default.moveItem(at: $0, to: elsewhere)
      try FileManager.default.createSymbolicLink(at: $0, withDestinationURL: elsewhere)
    }
  }

  func testACacheOfAnotherUserIsNeitherReadNorWritten() throws {
    // Root's files are believed, and the test may run as root: so the folders get an owner, too.
    guard geteuid() == 0 else { return try refuse("belongs to another user", user: geteuid() + 1) }
    try refuse("belongs to another user") { XCTAssertEqual(chown($0.path, 12345, 12345), 0) }
    try refuse("belongs to another user") { _ in
      XCTAssertEqual(chown(self.cache.path, 12345, 12345), 0)
    }
  }

  func testAnEntryIsARegularFileOfASaneSize() throws {
    let library = folder.appendingPathComponent("some.metallib")
    try Data(repeating: 42, count: 100).write(to: library)
    let outside = folder.appendingPathComponent("outside")
    try Data(repeating: 42, count: 100).write(to: outside)
    let store = ShaderCache(folder: cache)
    let spoils: [(String, (URL) throws -> Void)] = [
      (
        "symbolic links",
        { try FileManager.default.createSymbolicLink(at: $0, withDestinationURL: outside) }
      ),
      ("neither a folder nor a regular file", { XCTAssertEqual(mkfifo($0.path, 0o600), 0) }),
      (
        "larger than",
        {
          FileManager.default.createFile(atPath: $0.path, contents: nil)
          XCTAssertEqual(truncate($0.path, 1 << 34), 0)
        }
      ),
      (
        "can be written to by others",
        {
          try Data(repeating: 42, count: 100).write(to: $0)
          try self.open($0, to: 0o666)
        }
      ),
    ]
    for name in [ShaderCache.library, "entry.json"] {
      for (reason, spoil) in spoils {
        let kept = try store.store(library, as: "key", variant: .plain, compiler: "test")
        let file = kept.deletingLastPathComponent().appendingPathComponent(name)
        try FileManager.default.removeItem(at: file)
        try spoil(file)
        XCTAssertThrowsError(try store.find("key", on: policy().system), reason) {
          XCTAssertTrue("\($0)".contains(reason), "\($0) instead of \(reason)")
        }
        XCTAssertNil(try store.find("key", on: policy().system), "it was removed")
      }
    }
    XCTAssertEqual(try leftovers(), [])
  }

  func testWhatIsStoredIsPrivateWhateverTheUmask() throws {
    let library = folder.appendingPathComponent("some.metallib")
    try Data(repeating: 42, count: 100).write(to: library)
    let before = umask(0)
    defer { umask(before) }
    let store = ShaderCache(folder: cache)
    _ = try store.store(library, as: "key", variant: .plain, compiler: "test")
    XCTAssertNotNil(try store.find("key", on: policy().system))
  }

  func testProcessesThatStoreTheSameEntryAtOnce() throws {
    let library = folder.appendingPathComponent("some.metallib")
    try Data(repeating: 42, count: 5_000).write(to: library)
    let products = [Bundle(for: Self.self).bundleURL, Bundle.main.bundleURL]
    let storer = products.flatMap { [$0, $0.deletingLastPathComponent()] }
      .map { $0.appendingPathComponent("ShaderStorer") }
      .first { FileManager.default.isExecutableFile(atPath: $0.path) }
    let children = try (0..<4).map { _ in
      let child = Process()
      child.executableURL = try XCTUnwrap(storer)
      child.arguments = [cache.path, "key", library.path, "20"]
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
