// Metal sources compiled for this machine and run on it (tests/standins/software_metal).
//   METAL_STANDIN_COMPILER   program that is given a source's path and prints a library's; without
//                            it nothing is compiled and dispatches do nothing

import Foundation

/// A compiled source. Function constants are variables of it, so one run at a time.
final class SoftwareProgram: @unchecked Sendable {
  /// As `software_metal::Function` (software_metal_entry.h).
  private struct Function {
    var name: UnsafePointer<CChar>?
    var run: UnsafeRawPointer?
    var meets: Bool
  }

  /// As `software_metal::Constant`.
  private struct Constant {
    var index: Int32
    var value: UnsafeMutableRawPointer?
    var defined: UnsafeMutableRawPointer?
    var size: Int
    var required: Bool
  }

  private typealias Dispatch = @convention(c) (UnsafePointer<CChar>, UnsafeRawPointer) -> Int32

  private static let lock = NSLock()
  private let functions: UnsafePointer<Function>
  private let constants: UnsafePointer<Constant>
  private let dispatch: Dispatch

  /// Nil where this process is not to execute anything; throws what the compiler says.
  init?(source: String) throws {
    guard let compiler = ProcessInfo.processInfo.environment["METAL_STANDIN_COMPILER"] else {
      return nil
    }
    let path = try Self.compile(source, with: compiler)
    guard let handle = dlopen(path, RTLD_NOW | RTLD_LOCAL),
      let functions = dlsym(handle, "software_metal_functions"),
      let constants = dlsym(handle, "software_metal_constants"),
      let dispatch = dlsym(handle, "software_metal_dispatch")
    else { throw StandinError(description: "\(path) is no library of software Metal") }
    self.functions = UnsafeRawPointer(functions).assumingMemoryBound(to: Function.self)
    self.constants = UnsafeRawPointer(constants).assumingMemoryBound(to: Constant.self)
    self.dispatch = unsafeBitCast(dispatch, to: Dispatch.self)
  }

  private static func compile(_ source: String, with compiler: String) throws -> String {
    let folder = FileManager.default.temporaryDirectory
    let name = UUID().uuidString
    let file = folder.appendingPathComponent("\(name).metal")
    let messages = folder.appendingPathComponent("\(name).txt")
    defer {
      try? FileManager.default.removeItem(at: file)
      try? FileManager.default.removeItem(at: messages)
    }
    try Data(source.utf8).write(to: file)
    try Data().write(to: messages)
    let process = Process()
    let output = Pipe()
    process.executableURL = URL(fileURLWithPath: compiler)
    process.arguments = [file.path]
    process.standardOutput = output
    process.standardError = try FileHandle(forWritingTo: messages)
    try process.run()
    let told = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else {
      let text = (try? String(contentsOf: messages, encoding: .utf8)) ?? ""
      throw StandinError(description: "program_source: \(text)")
    }
    return String(decoding: told, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
  }

  func has(_ name: String) -> Bool {
    var place = functions
    while let known = place.pointee.name {
      if String(cString: known) == name { return true }
      place += 1
    }
    return false
  }

  /// Throw, as the making of a pipeline does, where a constant has no value or one of another size.
  func require(_ values: [Int: [UInt8]]) throws {
    var place = constants
    while place.pointee.index >= 0 {
      let constant = place.pointee
      let value = values[Int(constant.index)]
      if value == nil, constant.required {
        throw StandinError(description: "function constant \(constant.index) has no value")
      }
      if let value, value.count != constant.size {
        throw StandinError(
          description: "function constant \(constant.index) has \(value.count) bytes, "
            + "and the source says \(constant.size)")
      }
      place += 1
    }
  }

  func run(_ name: String, constants values: [Int: [UInt8]], grid: SoftwareGrid) {
    Self.lock.lock()
    defer { Self.lock.unlock() }
    var place = constants
    while place.pointee.index >= 0 {
      let constant = place.pointee
      let value = values[Int(constant.index)] ?? []
      memset(constant.value!, 0, constant.size)
      memcpy(constant.value!, value, value.count)
      constant.defined!.storeBytes(of: !value.isEmpty, as: Bool.self)
      place += 1
    }
    let status = grid.withBytes { dispatch(name, $0) }
    if status != 0 { fatalError("\(name) cannot be dispatched over \(grid.threads)") }
  }
}

/// What was bound and dispatched: `software_metal::Dispatch` (execute.h).
struct SoftwareGrid {
  enum Slot {
    case buffer(MTLBuffer, offset: Int)
    case bytes([UInt8])
  }

  private static let slots = 31
  private static let slotBytes = 32
  var bound: [Int: Slot] = [:]
  var threadgroupBytes: [Int: Int] = [:]
  var threads = MTLSize(width: 0, height: 0, depth: 0)
  var group = MTLSize(width: 0, height: 0, depth: 0)

  var buffers: [MTLBuffer] {
    bound.values.compactMap { if case let .buffer(buffer, _) = $0 { buffer } else { nil } }
  }

  func withBytes<R>(_ body: (UnsafeRawPointer) -> R) -> R {
    let sizes = Self.slots * Self.slotBytes
    let total = sizes + Self.slots * 8 + 24
    let memory = UnsafeMutableRawPointer.allocate(byteCount: total, alignment: 16)
    memset(memory, 0, total)
    var copies: [UnsafeMutableRawPointer] = []
    defer {
      copies.forEach { $0.deallocate() }
      memory.deallocate()
    }
    for (index, slot) in bound {
      let at = memory + index * Self.slotBytes
      switch slot {
      case let .buffer(buffer, offset):
        at.storeBytes(of: buffer.contents() + offset, as: UnsafeMutableRawPointer.self)
        at.storeBytes(of: offset, toByteOffset: 8, as: Int.self)
        at.storeBytes(of: buffer.length, toByteOffset: 16, as: Int.self)
        at.storeBytes(of: 1, toByteOffset: 24, as: UInt32.self)
      case let .bytes(bytes):
        let copy = UnsafeMutableRawPointer.allocate(byteCount: max(bytes.count, 1), alignment: 16)
        memcpy(copy, bytes, bytes.count)
        copies.append(copy)
        at.storeBytes(of: copy, as: UnsafeMutableRawPointer.self)
        at.storeBytes(of: bytes.count, toByteOffset: 16, as: Int.self)
        at.storeBytes(of: 2, toByteOffset: 24, as: UInt32.self)
      }
    }
    for (index, bytes) in threadgroupBytes {
      memory.storeBytes(of: bytes, toByteOffset: sizes + index * 8, as: Int.self)
    }
    let numbers =
      [threads.width, threads.height, threads.depth]
      + [group.width, group.height, group.depth]
    for (place, number) in numbers.enumerated() {
      memory.storeBytes(
        of: UInt32(number), toByteOffset: sizes + Self.slots * 8 + place * 4, as: UInt32.self)
    }
    return body(memory)
  }
}
