import Foundation

/// What became of one request for a library.
struct ShaderOrigin: Codable, Sendable {
  enum Place: String, Codable {
    case pack, cache, runtime, xcrun, failed
  }

  /// Of the form that was used; of the first one tried when all failed.
  var key: String
  var variant: ShaderVariant
  /// What it was compiled with, as its key has it.
  var options: String
  var origin: Place
  var milliseconds: Double
  /// What was tried before and why it did not do.
  var attempts: [String]
}

/// Every library of this process and where it came from, in the order of the requests.
final class ShaderOrigins: @unchecked Sendable {
  static let shared = ShaderOrigins()
  private let lock = NSLock()
  private var origins: [ShaderOrigin] = []

  func add(_ origin: ShaderOrigin) {
    lock.lock()
    defer { lock.unlock() }
    origins.append(origin)
  }

  func json() -> Data {
    lock.lock()
    defer { lock.unlock() }
    let encoder = JSONEncoder()
    encoder.outputFormatting = .sortedKeys
    return (try? encoder.encode(origins)) ?? Data("[]".utf8)
  }
}

/// Write the origins of this process's shader libraries, as JSON and zero-terminated, to `buffer`.
///
/// Returns the number of bytes needed. Nothing is written when `size` is less or `buffer` is null.
@_cdecl("mfa_shader_origins")
public func mfa_shader_origins(_ buffer: UnsafeMutablePointer<CChar>?, _ size: Int) -> Int32 {
  let text = ShaderOrigins.shared.json() + [0]
  if let buffer, size >= text.count {
    text.withUnsafeBytes { bytes in
      UnsafeMutableRawPointer(buffer).copyMemory(from: bytes.baseAddress!, byteCount: bytes.count)
    }
  }
  return Int32(clamping: text.count)
}
