import Foundation
import Metal
import XCTest

@testable import Overlay

/// A folder of its own for each test, stand-in devices, and fake tools.
class OverlayTestCase: XCTestCase {
  var folder = URL(fileURLWithPath: "/")

  static let eventSource = """
    #ifndef __METAL_SIMDGROUP_EVENT
    #define __METAL_SIMDGROUP_EVENT
    void copy() __asm("air.copy");
    #endif
    #include "GEMMBFloatTypes.h"
    kernel void attention() {}
    """
  static let simpleSource = "kernel void mask() {}"

  override func setUpWithError() throws {
    folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
  }

  override func tearDownWithError() throws {
    try FileManager.default.removeItem(at: folder)
  }

  var cache: URL { folder.appendingPathComponent("cache") }
  var pack: URL { folder.appendingPathComponent("shaders") }

  func policy() -> ShaderPolicy {
    var policy = ShaderPolicy()
    policy.cache = cache
    policy.pack = pack
    policy.system = OperatingSystemVersion(majorVersion: 15, minorVersion: 4, patchVersion: 0)
    return policy
  }

  func device(rejecting reject: String = "") -> StandinDevice {
    let device = StandinDevice()
    device.reject = reject
    return device
  }

  func options() -> MTLCompileOptions {
    let options = MTLCompileOptions()
    options.languageVersion = .version3_2
    options.mathMode = .relaxed
    return options
  }

  /// A shell script in the place of `xcrun`; `$tool` is metal or metallib, `$output` its last word.
  func fakeXcrun(_ body: String) throws -> URL {
    let script = folder.appendingPathComponent("xcrun")
    let text = """
      #!/bin/sh
      echo "$@" >> "\(folder.path)/calls"
      shift 2
      tool=$1
      for output; do :; done
      if [ "$2" = --version ]; then echo "fake metal 1"; exit 0; fi
      \(body)
      """
    try Data(text.utf8).write(to: script)
    try FileManager.default.setAttributes([.posixPermissions: 0o755], ofItemAtPath: script.path)
    return script
  }

  static let working = "printf 'standin metallib\\nattention' > \"$output\""

  func calls() -> String {
    (try? String(contentsOf: folder.appendingPathComponent("calls"), encoding: .utf8)) ?? ""
  }

  /// Put one library into the pack and return its index entry's key.
  @discardableResult
  func addToPack(
    _ source: String, variant: ShaderVariant = .upstream, minimumOS: String = "15.0",
    file: String = "a.metallib", damage: Bool = false
  ) throws -> String {
    let form = try XCTUnwrap(
      ShaderText.forms(of: source, options: ShaderText.settled(options()), forced: nil)
        .first { $0.variant == variant })
    try FileManager.default.createDirectory(at: pack, withIntermediateDirectories: true)
    let content = StandinDevice.libraryMagic + Data("attention mask".utf8)
    let hash = ShaderText.hexadecimal(of: content)
    try (damage ? content + [0] : content).write(
      to: pack.appendingPathComponent("a.metallib"))
    let entry = ShaderEntry(
      file: file, sha256: hash, variant: variant, compiler: "test", minimumOS: minimumOS)
    let index = ShaderPack.Index(format: ShaderPack.format, libraries: [form.key: entry])
    try JSONEncoder().encode(index).write(to: pack.appendingPathComponent("index.json"))
    return form.key
  }

  func origins(_ origins: ShaderOrigins) throws -> [ShaderOrigin] {
    try JSONDecoder().decode([ShaderOrigin].self, from: origins.json())
  }
}
