// C functions with which a test, or `build_tools typecheck`, makes the objects that a library
// takes as void pointers.

import Foundation

@_cdecl("metal_standin_buffer")
public func metalStandinBuffer(_ length: Int) -> UnsafeMutableRawPointer {
  Unmanaged.passRetained(StandinBuffer(length: length) as AnyObject).toOpaque()
}

@_cdecl("metal_standin_command_buffer")
public func metalStandinCommandBuffer() -> UnsafeMutableRawPointer {
  Unmanaged.passRetained(StandinCommandBuffer() as AnyObject).toOpaque()
}

@_cdecl("metal_standin_dispatches")
public func metalStandinDispatches(_ commandBuffer: UnsafeMutableRawPointer) -> Int {
  let object = Unmanaged<AnyObject>.fromOpaque(commandBuffer).takeUnretainedValue()
  return (object as? StandinCommandBuffer)?.dispatches.count ?? -1
}

@_cdecl("metal_standin_release")
public func metalStandinRelease(_ object: UnsafeMutableRawPointer) {
  Unmanaged<AnyObject>.fromOpaque(object).release()
}
