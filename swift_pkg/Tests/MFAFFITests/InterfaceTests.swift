import Foundation
import MFAFFI
import Testing

@Suite struct InterfaceTests {
  let engine: Engine

  init() throws { engine = try Engine() }

  @Test func buffersOfTheLibraryStartAsZeros() throws {
    let buffer = try Buffer(engine, bytes: 100)
    #expect(buffer.read(UInt8.self, count: 100).allSatisfy { $0 == 0 })
    #expect(UInt(bitPattern: mfa_buffer_contents(buffer.handle)) % 64 == 0)
  }

  @Test func latencyIsThatOfTheLastCall() throws {
    #expect(mfa_get_gpu_latency(engine.handle) == 0)
    let p = Problem(batch: 1, heads: 2, queries: 64, keys: 64, dim: 32, seed: 1)
    _ = try engine.forward(p)
    let seconds = mfa_get_gpu_latency(engine.handle)
    #expect(seconds > 0 && seconds < 60)
    #expect(mfa_get_gpu_latency(nil) == 0)
  }

  @Test(arguments: -1...6)
  func everyCodeHasAText(code: Int32) throws {
    let text = try #require(mfa_error_string(code))
    #expect(!String(cString: text).isEmpty)
    free(UnsafeMutableRawPointer(mutating: text))
  }

  @Test func versionAndSupport() {
    var (major, minor, patch) = (Int32(-1), Int32(-1), Int32(-1))
    mfa_get_version(&major, &minor, &patch)
    #expect((major, minor, patch) == (1, 0, 0))
    #expect(mfa_is_device_supported())
  }

  @Test func refusalsWriteNothing() throws {
    let p = Problem(batch: 1, heads: 1, queries: 8, keys: 8, dim: 8, seed: 2)
    let whole = try Buffer(engine, p.q)
    let short = try Buffer(engine, [Float](repeating: 7, count: p.outputCount - 1))
    #expect(throws: EngineError(code: MFA_ERROR_INVALID_ARGS.asCode)) {
      try engine.forward(p, q: whole, k: whole, v: whole, out: short)
    }
    #expect(short.read(Float.self, count: p.outputCount - 1).allSatisfy { $0 == 7 })
    #expect(throws: EngineError(code: MFA_ERROR_INVALID_ARGS.asCode)) {
      try engine.forward(p, q: whole, k: whole, v: whole, out: whole)
    }
    var none = p
    none.batch = 0
    let out = try Buffer(engine, bytes: 4 * p.outputCount)
    #expect(throws: EngineError(code: MFA_ERROR_INVALID_ARGS.asCode)) {
      try engine.forward(none, q: whole, k: whole, v: whole, out: out)
    }
    #expect(throws: EngineError(code: MFA_ERROR_INVALID_ARGS.asCode)) {
      try engine.forward(p, q: whole, k: whole, v: whole, out: out, input: MFA_PRECISION_INT8)
    }
  }

  @Test func nullHandlesAreSafe() {
    mfa_destroy_context(nil)
    mfa_destroy_buffer(nil)
    #expect(mfa_buffer_contents(nil) == nil)
    #expect(mfa_create_context(nil) == MFA_ERROR_INVALID_ARGS.asCode)
    #expect(
      mfa_attention_forward(
        nil, nil, nil, nil, nil, 1, 1, 1, 1, 1, 1, false, 2, 2, 2, false, false, false, false, nil,
        0, nil, nil, 0, 0, 0) == MFA_ERROR_INVALID_ARGS.asCode)
  }

  @Test func whatOnlyMetalHasSaysSo() {
    var buffer: mfa_buffer_t?
    #expect(
      mfa_buffer_from_mtl_buffer(engine.handle, engine.handle, 4, &buffer)
        == MFA_ERROR_DEVICE_NOT_SUPPORTED.asCode)
    #expect(buffer == nil)
    #expect(mfa_mla_create_context(&buffer) == MFA_ERROR_DEVICE_NOT_SUPPORTED.asCode)
  }

  @Test func describeIsOneLineOfPairs() {
    var text = [CChar](repeating: 0, count: 256)
    #expect(mfa_portable_describe(&text, text.count) == MFA_SUCCESS.asCode)
    let line = String(
      decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    let keys = line.split(separator: " ").map { $0.split(separator: "=")[0] }
    #expect(keys == ["abi", "isa", "bf16", "threads", "features"])
    #expect(mfa_portable_describe(&text, 3) == MFA_ERROR_INVALID_ARGS.asCode)
  }

  @Test func portableCallWithGroupedQueries() throws {
    // Two query heads read one key head: the same as that head twice.
    var p = Problem(batch: 1, heads: 2, queries: 9, keys: 14, dim: 8, seed: 3)
    let (k, v) = (Array(p.k[..<(14 * 8)]), Array(p.v[..<(14 * 8)]))
    (p.k, p.v) = (k + k, v + v)
    var out = [Float](repeating: .nan, count: p.outputCount)
    let code = p.q.withUnsafeBytes { q in
      k.withUnsafeBytes { k in
        v.withUnsafeBytes { v in
          out.withUnsafeMutableBytes { out -> Int32 in
            var args = mfa_portable_args_t()
            args.struct_bytes = UInt32(MemoryLayout<mfa_portable_args_t>.size)
            (args.batch, args.heads_q, args.heads_kv) = (1, 2, 1)
            (args.seq_q, args.seq_kv, args.head_dim, args.value_dim) = (9, 14, 8, 8)
            (args.q, args.k, args.v) = (q.baseAddress, k.baseAddress, v.baseAddress)
            args.out = out.baseAddress
            (args.q_bytes, args.k_bytes) = (UInt64(q.count), UInt64(k.count))
            (args.v_bytes, args.out_bytes) = (UInt64(v.count), UInt64(out.count))
            (args.q_strides, args.out_strides) = ((0, 72, 8), (0, 72, 8))
            (args.k_strides, args.v_strides) = ((0, 0, 8), (0, 0, 8))
            args.input_precision = Int32(MFA_PRECISION_FP32)
            args.output_precision = Int32(MFA_PRECISION_FP32)
            args.scale = p.scale
            return mfa_portable_attention(engine.handle, &args)
          }
        }
      }
    }
    #expect(code == MFA_SUCCESS.asCode)
    #expect(largestDifference(out, p.reference()) < 1e-5)
  }
}

extension Int {
  /// The header's constants come as Int, results as Int32.
  fileprivate var asCode: Int32 { Int32(self) }
}
