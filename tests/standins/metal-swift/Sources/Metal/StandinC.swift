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

// What the Python stand-ins of PyObjC and of MLX's buffers need (tests/standins/metal): the same
// functions as tests/standins/metal/umfa.c has, over the objects of this module.

/// What a correct caller never does.
enum StandinMisuse {
  private static let lock = NSLock()
  nonisolated(unsafe) private static var texts = ""
  nonisolated(unsafe) private static var shown: UnsafeMutablePointer<CChar>?

  static func record(_ text: String) {
    lock.withLock { texts += text + "\n" }
  }

  static func all() -> UnsafePointer<CChar>? {
    lock.withLock {
      free(shown)
      shown = strdup(texts)
      return UnsafePointer(shown)
    }
  }

  static func forget() {
    lock.withLock { texts = "" }
  }
}

private let lock = NSLock()
nonisolated(unsafe) private var borrowed: Set<UnsafeMutableRawPointer> = []
nonisolated(unsafe) private var waits: Int32 = 0

/// Autorelease pools belong to threads.
private var poolDepth: Int {
  get { Thread.current.threadDictionary["standin pools"] as? Int ?? 0 }
  set { Thread.current.threadDictionary["standin pools"] = newValue }
}

@_cdecl("standin_buffer")
public func standinBuffer(_ pointer: UnsafeMutableRawPointer, _ length: Int)
  -> UnsafeMutableRawPointer
{
  let buffer = StandinBuffer(borrowing: pointer, length: length, deallocator: nil)
  let made = Unmanaged.passRetained(buffer as AnyObject).toOpaque()
  lock.withLock { _ = borrowed.insert(made) }
  return made
}

/// Objects are never freed, so that a use after release is seen and is no accident.
@_cdecl("standin_buffer_release")
public func standinBufferRelease(_ object: UnsafeMutableRawPointer) {
  lock.withLock { _ = borrowed.remove(object) }
  let buffer = Unmanaged<AnyObject>.fromOpaque(object).takeUnretainedValue()
  (buffer as? StandinBuffer)?.isReleased = true
}

@_cdecl("standin_is_buffer")
public func standinIsBuffer(_ object: UnsafeMutableRawPointer) -> Bool {
  lock.withLock { borrowed.contains(object) }
}

@_cdecl("standin_buffer_length")
public func standinBufferLength(_ object: UnsafeMutableRawPointer) -> Int {
  (Unmanaged<AnyObject>.fromOpaque(object).takeUnretainedValue() as? StandinBuffer)?.length ?? 0
}

@_cdecl("standin_commands")
public func standinCommands() -> UnsafeMutableRawPointer {
  if poolDepth == 0 {
    StandinMisuse.record("a command buffer was made without an autorelease pool")
  }
  return metalStandinCommandBuffer()
}

@_cdecl("standin_commands_release")
public func standinCommandsRelease(_ object: UnsafeMutableRawPointer) {
  metalStandinRelease(object)
}

private func commands(_ object: UnsafeMutableRawPointer) -> StandinCommandBuffer {
  guard
    let found = Unmanaged<AnyObject>.fromOpaque(object).takeUnretainedValue()
      as? StandinCommandBuffer
  else { fatalError("a pointer that is no command buffer") }
  return found
}

@_cdecl("standin_commit")
public func standinCommit(_ object: UnsafeMutableRawPointer) -> Int32 {
  let buffer = commands(object)
  let twice = buffer.committed
  buffer.commit()
  return twice ? 1 : 0
}

@_cdecl("standin_wait")
public func standinWait(_ object: UnsafeMutableRawPointer) {
  lock.withLock { waits += 1 }
  commands(object).waitUntilCompleted()
}

@_cdecl("standin_waits")
public func standinWaits() -> Int32 { lock.withLock { waits } }

@_cdecl("standin_status")
public func standinStatus(_ object: UnsafeMutableRawPointer) -> Int32 {
  commands(object).status.rawValue
}

@_cdecl("standin_pool")
public func standinPool(_ by: Int32) { poolDepth += Int(by) }

/// The one switch that the Python stand-ins ask for and that this device has.
@_cdecl("standin_get")
public func standinGet(_ name: UnsafePointer<CChar>) -> Int32 {
  String(cString: name) == "family" ? Int32(StandinDevice.shared.family) : 0
}

@_cdecl("standin_misuse")
public func standinMisuse(_ text: UnsafePointer<CChar>) {
  StandinMisuse.record(String(cString: text))
}

@_cdecl("standin_misuses")
public func standinMisuses() -> UnsafePointer<CChar>? { StandinMisuse.all() }

@_cdecl("standin_reset")
public func standinReset() { StandinMisuse.forget() }
