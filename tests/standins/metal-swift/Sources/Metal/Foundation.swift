// What upstream finds on Apple's platforms and not on Linux.

import Foundation

public typealias CFTimeInterval = Double

public func CFAbsoluteTimeGetCurrent() -> Double {
  Date().timeIntervalSinceReferenceDate
}

/// Upstream defines this for macOS (from the I/O registry) and for iOS, tvOS and visionOS. Only its
/// matrix multiplication, which we never call, reads it.
public var coreCount: Int { 10 }

public struct Dl_info {
  public var dli_fname: UnsafePointer<CChar>?
  public var dli_fbase: UnsafeMutableRawPointer?
  public var dli_sname: UnsafePointer<CChar>?
  public var dli_saddr: UnsafeMutableRawPointer?

  public init() {}
}

/// The C library has it, but Swift's module of it leaves GNU extensions out.
@_silgen_name("dladdr")
public func dladdr(_ address: UnsafeRawPointer, _ info: UnsafeMutablePointer<Dl_info>) -> Int32
