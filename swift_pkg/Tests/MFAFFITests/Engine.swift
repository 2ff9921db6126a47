import MFAFFI

/// Owns a context; frees it exactly once.
final class Engine {
  let handle: mfa_context_t

  init() throws {
    var made: mfa_context_t?
    try check(mfa_create_context(&made))
    handle = made!
  }

  deinit { mfa_destroy_context(handle) }
}

/// Owns a buffer and, for borrowed ones, the memory under it.
final class Buffer {
  let handle: mfa_buffer_t
  private let memory: UnsafeMutableRawPointer?

  /// Memory of the library's own.
  init(_ engine: Engine, bytes: Int) throws {
    var made: mfa_buffer_t?
    try check(mfa_create_buffer(engine.handle, bytes, &made))
    handle = made!
    memory = nil
  }

  /// A copy of the values, borrowed by the library; with strides when given.
  init<T>(_ engine: Engine, _ values: [T], shape: [Int64]? = nil, strides: [Int64]? = nil) throws {
    let bytes = values.count * MemoryLayout<T>.stride
    let copy = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: 16)
    values.withUnsafeBytes { copy.copyMemory(from: $0.baseAddress!, byteCount: bytes) }
    memory = copy
    var made: mfa_buffer_t?
    if let shape, let strides {
      try check(
        mfa_buffer_from_ptr_with_strides(
          engine.handle, copy, bytes, shape, strides, UInt32(shape.count), &made))
    } else {
      try check(mfa_buffer_from_ptr(engine.handle, copy, bytes, &made))
    }
    handle = made!
  }

  deinit {
    mfa_destroy_buffer(handle)
    memory?.deallocate()
  }

  func read<T>(_ type: T.Type, count: Int) -> [T] {
    let start = mfa_buffer_contents(handle)!.assumingMemoryBound(to: T.self)
    return Array(UnsafeBufferPointer(start: start, count: count))
  }
}

struct EngineError: Error, Equatable {
  let code: Int32
}

func check(_ code: Int32) throws {
  if code != 0 { throw EngineError(code: code) }
}

/// A mask as the call takes it.
struct Mask {
  var bytes: [UInt8]
  var shape: [Int64]
  var strides: [Int64]
  var type: Int
  var scalar: Int

  static func of<T>(_ values: [T], shape: [Int64], strides: [Int64], type: Int, scalar: Int) -> Mask
  {
    Mask(
      bytes: values.withUnsafeBytes { Array($0) }, shape: shape, strides: strides, type: type,
      scalar: scalar)
  }
}

extension Engine {
  /// mfa_attention_forward with the sizes of a problem.
  func forward(
    _ p: Problem, q: Buffer, k: Buffer, v: Buffer, out: Buffer,
    input: Int = MFA_PRECISION_FP32, output: Int = MFA_PRECISION_FP32,
    transposes: [Bool] = [false, false, false, false], mask: Mask? = nil
  ) throws {
    try check(
      mfa_attention_forward(
        handle, q.handle, k.handle, v.handle, out.handle, UInt32(p.batch), UInt32(p.queries),
        UInt32(p.keys), UInt32(p.heads), UInt16(p.dim), p.scale, p.causal, Int32(input),
        Int32(MFA_PRECISION_FP32), Int32(output), transposes[0], transposes[1], transposes[2],
        transposes[3], mask?.bytes, mask?.bytes.count ?? 0, mask?.shape, mask?.strides,
        UInt32(mask?.shape.count ?? 0), Int32(mask?.type ?? MFA_MASK_TYPE_NONE),
        Int32(mask?.scalar ?? MFA_MASK_SCALAR_BYTE)))
  }

  /// The same in FP32 on dense copies of the problem's own arrays.
  func forward(_ p: Problem, mask: Mask? = nil) throws -> [Float] {
    let out = try Buffer(self, bytes: 4 * p.outputCount)
    try forward(
      p, q: Buffer(self, p.q), k: Buffer(self, p.k), v: Buffer(self, p.v), out: out, mask: mask)
    return out.read(Float.self, count: p.outputCount)
  }
}
