import FlashAttention
import Foundation
@preconcurrency import Metal

final class Context {
  let attention: Attention
  let device: MTLDevice

  init(device: MTLDevice) {
    self.device = device
    attention = Attention(device: device)
  }
}

@_cdecl("mfa_create_context")
public func mfa_create_context(_ context: UnsafeMutablePointer<UnsafeMutableRawPointer?>?) -> Int32 {
  guard let context else { return 1 }
  guard let device = MTLCreateSystemDefaultDevice() else { return 3 }
  context.pointee = Unmanaged.passRetained(Context(device: device)).toOpaque()
  return 0
}

private func operand(
  _ object: UnsafeMutableRawPointer?, _ offset: Int, _ strides: UnsafePointer<Int64>?
) -> Operand? {
  guard let object,
    let buffer = Unmanaged<AnyObject>.fromOpaque(object).takeUnretainedValue() as? MTLBuffer
  else { return nil }
  let steps = strides.map { Array(UnsafeBufferPointer(start: $0, count: 4)) } ?? [0, 0, 0, 1]
  return Operand(buffer: buffer, offset: offset, strides: steps)
}

@_cdecl("mfa_attention_encode_mtl")
public func mfa_attention_encode_mtl(
  _ context: UnsafeMutableRawPointer?, _ commandBuffer: UnsafeMutableRawPointer?,
  _ q: UnsafeMutableRawPointer?, _ qOffset: Int, _ qStrides: UnsafePointer<Int64>?,
  _ k: UnsafeMutableRawPointer?, _ kOffset: Int, _ kStrides: UnsafePointer<Int64>?,
  _ v: UnsafeMutableRawPointer?, _ vOffset: Int, _ vStrides: UnsafePointer<Int64>?,
  _ out: UnsafeMutableRawPointer?, _ outOffset: Int,
  _ mask: UnsafeMutableRawPointer?, _ maskOffset: Int, _ maskShape: UnsafePointer<Int64>?,
  _ maskStrides: UnsafePointer<Int64>?,
  _: UInt32, _ maskType: Int32, _: Int32,
  _ batch: UInt32, _ lengthQ: UInt32, _ lengthKV: UInt32, _ heads: UInt32,
  _ headDim: UInt16, _ scale: Float, _ causal: Bool,
  _ input: UnsafePointer<CChar>?, _ intermediate: UnsafePointer<CChar>?
) -> Int32 {
  guard let context, let commandBuffer, let input, let intermediate,
    let q = operand(q, qOffset, qStrides), let k = operand(k, kOffset, kStrides),
    let v = operand(v, vOffset, vStrides), let out = operand(out, outOffset, nil)
  else { return 1 }
  // Upstream divides by it, and has masks of bytes, too.
  precondition(headDim > 0)
  if maskType == 1 { return 1 }
  let state = Unmanaged<Context>.fromOpaque(context).takeUnretainedValue()
  guard
    let commands = Unmanaged<AnyObject>.fromOpaque(commandBuffer).takeUnretainedValue()
      as? MTLCommandBuffer
  else { return 1 }
  var bias: MTLBuffer?
  if maskType != 0 {
    guard let maskShape, let values = operand(mask, maskOffset, maskStrides) else { return 1 }
    let given = Mask(
      operand: values, shape: Array(UnsafeBufferPointer(start: maskShape, count: 4)))
    bias = given.expand(
      to: [batch, heads, lengthQ, lengthKV], device: state.device, into: commands)
    if bias == nil { return 5 }
  }
  let kernel = Kernel(
    length: max(lengthQ, lengthKV), headDim: headDim, scale: scale,
    input: String(cString: input), low: String(cString: intermediate) != "fp32")
  let call = Call(
    operands: [q, k, v], out: out, bias: bias, batch: Int(batch), heads: Int(heads),
    lengthQ: Int(lengthQ), lengthKV: Int(lengthKV), causal: causal)
  return state.attention.encode(kernel, call, into: commands) ? 0 : 5
}
