import Foundation
import Metal
import XCTest

@testable import Overlay

/// The run-time compiler, its two variants, and what is remembered.
final class CompilerTests: OverlayTestCase {
  func testHashesAreSHA256() {
    let known = [
      ("", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
      ("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
      (
        "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"
      ),
      (
        String(repeating: "a", count: 1_000_000),
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
      ),
    ]
    for (text, hash) in known {
      XCTAssertEqual(ShaderText.hexadecimal(of: Data(text.utf8)), hash)
    }
  }

  func testTheHeaderIsInlined() throws {
    let device = device()
    let libraries = ShaderLibraries(policy: policy(), origins: ShaderOrigins())
    _ = try libraries.library(device: device, source: Self.eventSource, options: options())
    XCTAssertEqual(device.accepted.count, 1)
    XCTAssertFalse(device.accepted[0].contains("#include \""))
    XCTAssertTrue(device.accepted[0].contains(embeddedBFloatHeader))
  }

  func testUpstreamsVariantComesFirst() throws {
    let device = device()
    let noted = ShaderOrigins()
    let libraries = ShaderLibraries(policy: policy(), origins: noted)
    _ = try libraries.library(device: device, source: Self.eventSource, options: options())
    XCTAssertFalse(device.accepted[0].contains(plainSimdgroupEvent))
    let origin = try origins(noted)[0]
    XCTAssertEqual(origin.origin, .runtime)
    XCTAssertEqual(origin.variant, .upstream)
    XCTAssertEqual(origin.attempts, [])
  }

  func testADeviceThatRejectsAssemblyGetsThePlainVariant() throws {
    let device = device(rejecting: "asm")
    let noted = ShaderOrigins()
    let libraries = ShaderLibraries(policy: policy(), origins: noted)
    _ = try libraries.library(device: device, source: Self.eventSource, options: options())
    XCTAssertEqual(device.offered.count, 2)
    XCTAssertTrue(device.accepted[0].hasPrefix(plainSimdgroupEvent))
    let origin = try origins(noted)[0]
    XCTAssertEqual(origin.variant, .plain)
    XCTAssertEqual(origin.attempts.count, 1)
    XCTAssertTrue(origin.attempts[0].hasPrefix("runtime (upstream): "))
  }

  func testAVariantCanBeForced() throws {
    var policy = policy()
    policy.variant = .plain
    let modern = device()
    _ = try ShaderLibraries(policy: policy, origins: ShaderOrigins())
      .library(device: modern, source: Self.eventSource, options: options())
    XCTAssertEqual(modern.offered.count, 1)
    XCTAssertTrue(modern.accepted[0].hasPrefix(plainSimdgroupEvent))

    policy.variant = .upstream
    let strict = device(rejecting: "asm")
    let libraries = ShaderLibraries(policy: policy, origins: ShaderOrigins())
    XCTAssertThrowsError(
      try libraries.library(device: strict, source: Self.eventSource, options: options()))
    XCTAssertEqual(strict.offered.count, 1)
  }

  func testASourceWithoutEventsHasOneForm() throws {
    for variant in ShaderVariant.allCases {
      let forms = ShaderText.forms(of: Self.simpleSource, options: options(), forced: variant)
      XCTAssertEqual(forms.map(\.source), [Self.simpleSource])
    }
  }

  func testAnUnknownVariantIsAnErrorThatNamesIt() throws {
    setenv(ShaderPolicy.variantVariable, "fastest", 1)
    defer { unsetenv(ShaderPolicy.variantVariable) }
    let device = device()
    let libraries = ShaderLibraries(policy: .ofProcess(), origins: ShaderOrigins())
    XCTAssertThrowsError(
      try libraries.library(device: device, source: Self.simpleSource, options: nil)
    ) { error in
      XCTAssertTrue("\(error)".contains("QWEN_MFA_SHADER_VARIANT=fastest"), "\(error)")
    }
    XCTAssertEqual(device.offered.count, 0)
  }

  func testTheEnvironmentChoosesVariantAndCache() {
    setenv(ShaderPolicy.variantVariable, "plain", 1)
    setenv(ShaderPolicy.cacheVariable, "/somewhere/else", 1)
    defer {
      unsetenv(ShaderPolicy.variantVariable)
      unsetenv(ShaderPolicy.cacheVariable)
    }
    let policy = ShaderPolicy.ofProcess()
    XCTAssertEqual(policy.variant, .plain)
    XCTAssertEqual(policy.cache?.path, "/somewhere/else")
    XCTAssertEqual(policy.pack?.lastPathComponent, "shaders")
  }

  func testALibraryIsCompiledOnce() throws {
    let device = device()
    let libraries = ShaderLibraries(policy: policy(), origins: ShaderOrigins())
    let first = try libraries.library(device: device, source: Self.simpleSource, options: nil)
    let second = try libraries.library(device: device, source: Self.simpleSource, options: nil)
    XCTAssertTrue(first === second)
    XCTAssertEqual(device.offered.count, 1)
  }

  func testThreadsThatAskAtOnceGetOneCompilation() {
    let device = device()
    let libraries = ShaderLibraries(policy: policy(), origins: ShaderOrigins())
    DispatchQueue.concurrentPerform(iterations: 16) { _ in
      _ = try? libraries.library(device: device, source: Self.simpleSource, options: nil)
    }
    XCTAssertEqual(device.offered.count, 1)
  }

  func testEveryOptionIsInTheKey() {
    let changes: [(MTLCompileOptions) -> Void] = [
      { $0.languageVersion = .version3_1 },
      { $0.mathMode = .safe },
      { $0.mathFloatingPointFunctions = .precise },
      { $0.optimizationLevel = .size },
      { $0.preserveInvariance = true },
      { $0.preprocessorMacros = ["A": "1" as NSString] },
    ]
    func key(_ source: String, _ given: MTLCompileOptions?) -> String {
      ShaderText.key(source: source, options: ShaderText.settled(given))
    }
    var keys: Set<String> = [key("x", nil), key("x", options()), key("y", options())]
    for change in changes {
      let changed = options()
      change(changed)
      keys.insert(key("x", changed))
    }
    XCTAssertEqual(keys.count, changes.count + 3)
  }

  func testTheStatedMathModeIsCompiledWithAndRecorded() throws {
    for (mode, word) in [(MTLMathMode.fast, "fast"), (.relaxed, "relaxed"), (.safe, "safe")] {
      let given = options()
      given.mathMode = mode
      let device = device()
      let noted = ShaderOrigins()
      _ = try ShaderLibraries(policy: policy(), origins: noted)
        .library(device: device, source: Self.simpleSource, options: given)
      XCTAssertEqual(device.offered[0].options?.mathMode, mode)
      let line =
        "language=3.2 math=\(word) functions=fast optimization=default invariance=no macros="
      XCTAssertEqual(try origins(noted)[0].options, line)
      XCTAssertEqual(ShaderText.describe(ShaderText.settled(given)), line)
    }
    XCTAssertEqual(ShaderText.settled(nil).mathMode, .relaxed)
  }

  func testWithoutAStatedLanguageThereIsNoBfloat() {
    let libraries = ShaderLibraries(policy: policy(), origins: ShaderOrigins())
    let source = "kernel void attention(device bfloat *q) {}"
    XCTAssertThrowsError(
      try libraries.library(device: device(), source: source, options: MTLCompileOptions())
    ) { error in
      XCTAssertTrue("\(error)".contains("unknown type name 'bfloat'"), "\(error)")
    }
    XCTAssertNoThrow(try libraries.library(device: device(), source: source, options: options()))
  }

  private func pipeline(_ libraries: ShaderLibraries, _ device: StandinDevice) throws {
    _ = try libraries.pipeline(device: device, source: Self.eventSource, options: options()) {
      try device.makeComputePipelineState(
        function: XCTUnwrap($0.makeFunction(name: "attention")))
    }
  }

  func testADeviceThatMakesNoPipelineOfAssemblyGetsThePlainVariant() throws {
    let device = device(rejecting: "pipeline")
    let noted = ShaderOrigins()
    let libraries = ShaderLibraries(policy: policy(), origins: noted)
    try pipeline(libraries, device)
    XCTAssertEqual(try origins(noted).map(\.variant), [.upstream, .plain])
    let attempts = try origins(noted)[1].attempts
    XCTAssertEqual(attempts.count, 1)
    XCTAssertTrue(attempts[0].hasPrefix("runtime (upstream): pipeline: "), attempts[0])
    // The next pipeline of the source is made of the same form at once.
    try pipeline(libraries, device)
    XCTAssertEqual(device.offered.count, 2)
  }

  func testAPipelineThatNoFormGivesIsAnErrorThatListsBoth() throws {
    var policy = policy()
    policy.variant = .upstream
    let device = device(rejecting: "pipeline")
    let libraries = ShaderLibraries(policy: policy, origins: ShaderOrigins())
    XCTAssertThrowsError(try pipeline(libraries, device)) { error in
      XCTAssertTrue("\(error)".contains("pipeline: undefined symbol"), "\(error)")
    }
    // It may have been for want of memory: the next call tries anew.
    device.reject = ""
    XCTAssertNoThrow(try pipeline(libraries, device))
  }

  func testAFailureListsEveryAttemptAndIsRemembered() {
    let device = device(rejecting: "all")
    let noted = ShaderOrigins()
    let libraries = ShaderLibraries(policy: policy(), origins: noted)
    for _ in 0..<2 {
      XCTAssertThrowsError(
        try libraries.library(device: device, source: Self.eventSource, options: options())
      ) { error in
        let text = "\(error)"
        for part in ["runtime (upstream)", "runtime (plain)", "xcrun (upstream)", "xcode-select"] {
          XCTAssertTrue(text.contains(part), text)
        }
      }
    }
    XCTAssertEqual(device.offered.count, 2)
    XCTAssertEqual(try origins(noted).map(\.origin), [.failed])
  }

  func testOriginsFillTheCallersBuffer() throws {
    ShaderOrigins.shared.add(
      ShaderOrigin(
        key: "k", variant: .plain, options: "", origin: .pack, milliseconds: 1, attempts: ["ü"]))
    let needed = Int(mfa_shader_origins(nil, 0))
    var small = [CChar](repeating: 7, count: needed - 1)
    XCTAssertEqual(Int(mfa_shader_origins(&small, small.count)), needed)
    XCTAssertEqual(Set(small), [7])
    var buffer = [CChar](repeating: 7, count: needed + 1)
    XCTAssertEqual(Int(mfa_shader_origins(&buffer, buffer.count)), needed)
    XCTAssertEqual(buffer[needed - 1], 0)
    XCTAssertEqual(buffer[needed], 7)
    let text = Data(buffer.prefix(needed - 1).map { UInt8(bitPattern: $0) })
    let read = try JSONDecoder().decode([ShaderOrigin].self, from: text)
    XCTAssertEqual(read.last?.attempts, ["ü"])
  }
}
