import FlashAttention
import Foundation
@preconcurrency import Metal

final class Context {
  let attention: Attention

  init(device: MTLDevice) {
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

@_cdecl("mfa_attention_encode_mtl")
public func mfa_attention_encode_mtl(
  _ context: UnsafeMutableRawPointer?, _ commandBuffer: UnsafeMutableRawPointer?,
  _ q: UnsafeMutableRawPointer?, _: Int, _: UnsafePointer<Int64>?,
  _: UnsafeMutableRawPointer?, _: Int, _: UnsafePointer<Int64>?,
  _: UnsafeMutableRawPointer?, _: Int, _: UnsafePointer<Int64>?,
  _: UnsafeMutableRawPointer?, _: Int,
  _: UnsafeMutableRawPointer?, _: Int, _: UnsafePointer<Int64>?, _: UnsafePointer<Int64>?,
  _: UInt32, _: Int32, _: Int32,
  _: UInt32, _ lengthQ: UInt32, _ lengthKV: UInt32, _: UInt32,
  _ headDim: UInt16, _ scale: Float, _: Bool,
  _ input: UnsafePointer<CChar>?, _ intermediate: UnsafePointer<CChar>?
) -> Int32 {
  guard let context, let commandBuffer, let input, let intermediate, q != nil else { return 1 }
  let state = Unmanaged<Context>.fromOpaque(context).takeUnretainedValue()
  guard
    let commands = Unmanaged<AnyObject>.fromOpaque(commandBuffer).takeUnretainedValue()
      as? MTLCommandBuffer
  else { return 1 }
  let kernel = Kernel(
    length: max(lengthQ, lengthKV), headDim: headDim, scale: scale,
    input: String(cString: input), low: String(cString: intermediate) != "fp32")
  return state.attention.encode(kernel, into: commands) ? 0 : 5
}
